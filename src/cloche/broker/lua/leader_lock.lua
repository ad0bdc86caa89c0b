-- Take the leader lock if it is free, and keep it if it is ours.
-- KEYS: 1 the leader lock
-- ARGV: 1 who asks, 2 ms to keep it
-- Returns who has it.
local holder = redis.call('GET', KEYS[1])
if not holder then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return ARGV[1]
end
if holder == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return holder
