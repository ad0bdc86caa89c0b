-- Take the baton if it is free, and keep it if it is ours.
-- KEYS: 1 the baton
-- ARGV: 1 who asks, 2 ms to keep it
-- Returns who has it.
local bearer = redis.call('GET', KEYS[1])
if not bearer then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]
end
if bearer == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return bearer
