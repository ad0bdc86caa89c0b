-- Append one message to a queue and wake one waiting consumer.
-- KEYS: 1 queue list, 2 the queue's wake-up key, 3 consumed queues (zset)
-- ARGV: 1 message, 2 queue name, 3... channel and text of each broadcast that goes with it
redis.call('LPUSH', KEYS[1], ARGV[1])
-- Only queues that our consumers wait on have a wake-up key: a reply queue read by a stock
-- client would leave its wake-up behind for ever.
if redis.call('EXISTS', KEYS[2]) == 0 and redis.call('ZSCORE', KEYS[3], ARGV[2]) then
    redis.call('LPUSH', KEYS[2], '1')
end
-- Nobody is promised an event: what a broadcast fails of does not fail the message.
for place = 3, #ARGV, 2 do
    redis.pcall('PUBLISH', ARGV[place], ARGV[place + 1])
end
