-- Send one run of a schedule: only with the leader lock, and only once.
-- KEYS: 1 the leader lock, 2 runs by schedule (hash), 3 queue list, 4 the queue's wake-up key,
--       5 consumed queues (zset)
-- ARGV: 1 who sends, 2 schedule, 3 the run before, 4 what to remember of this run,
--       5 queue name, 6 message
-- Returns 0 without the leader lock, 2 if this run was sent before, else 1.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
local found = redis.call('HGET', KEYS[2], ARGV[2])
if found and string.sub(found, 1, #ARGV[3] + 1) == ARGV[3] .. ' ' then
    return 2
end
redis.call('LPUSH', KEYS[3], ARGV[6])
if redis.call('EXISTS', KEYS[4]) == 0 and redis.call('ZSCORE', KEYS[5], ARGV[5]) then
    redis.call('LPUSH', KEYS[4], '1')
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3] .. ' ' .. ARGV[4])
return 1
