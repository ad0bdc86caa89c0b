-- Create a consumer's lease.
-- KEYS: 1 leases (zset), 2 its in-flight hash
-- ARGV: 1 consumer, 2 lease in ms
-- The writes to the in-flight hash are a rehearsal: an ACL user who may pop but not record
-- must be refused here, before a fetch could lose a message.
redis.call('HDEL', KEYS[2], '')
redis.call('HSET', KEYS[2], '', '')
redis.call('HDEL', KEYS[2], '')
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[1], ms + ARGV[2], ARGV[1])
return ms
