-- Append many messages to a queue, all or none, and only once however often this is retried.
-- KEYS: 1 queue list, 2 the queue's wake-up key, 3 consumed queues (zset), 4 marker of this batch
-- ARGV: 1 queue name, 2 s to remember the batch, 3... messages
-- Returns how many were appended: 0 if this batch came before.
if not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[2]) then
    return 0
end
for first = 3, #ARGV, 1000 do
    redis.call('LPUSH', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if redis.call('EXISTS', KEYS[2]) == 0 and redis.call('ZSCORE', KEYS[3], ARGV[1]) then
    redis.call('LPUSH', KEYS[2], '1')
end
return #ARGV - 2
