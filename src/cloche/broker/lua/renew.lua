-- Renew a consumer's lease and its interest in its queues.
-- KEYS: 1 leases, 2 its in-flight hash, 3 consumed queues (zset)
-- ARGV: 1 consumer, 2 lease in ms, 3... "queue" names
-- Returns {server time in ms, messages in flight}, or nil if the lease is lost.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return nil
end
-- A first write that needs no memory lets the others pass on a server at maxmemory:
-- a script that has written may not be stopped half-way.
redis.call('HDEL', KEYS[2], '')
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[1], ms + ARGV[2], ARGV[1])
if #ARGV > 2 then
    local queues = {}
    for i = 3, #ARGV do
        queues[#queues + 1] = ms
        queues[#queues + 1] = ARGV[i]
    end
    redis.call('ZADD', KEYS[3], unpack(queues))
end
return {ms, redis.call('HLEN', KEYS[2])}
