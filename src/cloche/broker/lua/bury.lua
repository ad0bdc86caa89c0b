-- Make a dead letter of a message in flight, if it is still there.
-- KEYS: 1 in-flight hash, 2 dead letters (hash), 3 their index by time (zset)
-- ARGV: 1 field, 2 id, 3 record (JSON)
local stored = redis.call('HDEL', KEYS[1], ARGV[1])
if stored == 1 then
    local now = redis.call('TIME')
    redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
    redis.call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000), ARGV[2])
end
return stored
