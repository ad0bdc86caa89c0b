-- Count one up, once however often this is retried.
-- KEYS: 1 counter, 2 marker of this call
-- ARGV: 1 s to remember the call
-- Returns the count.
if redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[1]) then
    return redis.call('INCR', KEYS[1])
end
return tonumber(redis.call('GET', KEYS[1]) or 0)
