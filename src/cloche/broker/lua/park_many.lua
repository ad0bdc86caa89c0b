-- Put many messages aside until they are due, all or none, once however often this is retried.
-- KEYS: 1 delayed messages by due time (zset), 2 their text (hash), 3 queues that have some (set),
--       4 marker of this batch
-- ARGV: 1 queue name, 2 s to remember the batch, 3 delay in ms, then pairs: id,
--       "<priority suffix>:<message>"; the ids must be new
if not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[2]) then
    return 0
end
local now = redis.call('TIME')
local due = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3]
for first = 4, #ARGV, 1000 do
    local last = math.min(first + 999, #ARGV)
    redis.call('HSET', KEYS[2], unpack(ARGV, first, last))
    local scores = {}
    for i = first, last, 2 do
        scores[#scores + 1] = due
        scores[#scores + 1] = ARGV[i]
    end
    redis.call('ZADD', KEYS[1], unpack(scores))
end
redis.call('SADD', KEYS[3], ARGV[1])
return (#ARGV - 3) / 2
