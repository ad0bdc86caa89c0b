-- End a consumer's lease. What it still holds, if anything, is left to the reaper at once.
-- KEYS: 1 leases, 2 its in-flight hash
-- ARGV: 1 consumer
if redis.call('EXISTS', KEYS[2]) == 1 then
    redis.call('HDEL', KEYS[2], '')
    return redis.call('ZADD', KEYS[1], 'XX', 0, ARGV[1])
end
return redis.call('ZREM', KEYS[1], ARGV[1])
