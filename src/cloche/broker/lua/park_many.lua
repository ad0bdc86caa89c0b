-- Put many messages aside until they are due, all or none, once however often this is retried.
-- KEYS: 1 delayed messages by due time (zset), 2 their text (hash), 3 queues that have some (set),
--       4 marker of this batch
-- ARGV: 1 queue name, 2 s to remember the batch, then triples: delay in ms, id,
--       "<priority suffix>:<message>"; the ids must be new
if not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[2]) then
    return 0
end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
for first = 3, #ARGV, 1500 do
    local scores, texts = {}, {}
    for i = first, math.min(first + 1499, #ARGV), 3 do
        scores[#scores + 1] = ms + ARGV[i]
        scores[#scores + 1] = ARGV[i + 1]
        texts[#texts + 1] = ARGV[i + 1]
        texts[#texts + 1] = ARGV[i + 2]
    end
    redis.call('HSET', KEYS[2], unpack(texts))
    redis.call('ZADD', KEYS[1], unpack(scores))
end
redis.call('SADD', KEYS[3], ARGV[1])
return (#ARGV - 2) / 3
