-- Put many messages aside until they are due, all or none, once however often this is retried.
-- KEYS: 1 delayed messages by due time (zset), 2 their text (hash), 3 queues that have some (set),
--       4 marker of this batch
-- ARGV: 1 queue name, 2 s to remember the batch, then triples: delay in ms, id,
--       "<priority suffix>:<message>"
if not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[2]) then
    return 0
end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
for first = 3, #ARGV, 1500 do
    local scores = {}
    for i = first, math.min(first + 1499, #ARGV), 3 do
        local id, copies = ARGV[i + 1], 1
        -- The same task id may wait more than once: see park.lua.
        while redis.call('HSETNX', KEYS[2], id, ARGV[i + 2]) == 0 do
            copies = copies + 1
            id = ARGV[i + 1] .. '#' .. copies
        end
        scores[#scores + 1] = ms + ARGV[i]
        scores[#scores + 1] = id
    end
    redis.call('ZADD', KEYS[1], unpack(scores))
end
redis.call('SADD', KEYS[3], ARGV[1])
return (#ARGV - 2) / 3
