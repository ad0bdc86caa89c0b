-- Put a message aside until it is due.
-- KEYS: 1 delayed messages by due time (zset), 2 their text (hash), 3 queues that have some (set),
--       4 in-flight hash, if the message comes from there
-- ARGV: 1 queue name, 2 delay in ms, 3 id, 4 "<priority suffix>:<message>", 5 field in flight
-- Returns 0 if the message was no longer in flight, else 1.
if KEYS[4] and redis.call('HDEL', KEYS[4], ARGV[5]) == 0 then
    return 0
end
local now = redis.call('TIME')
local due = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
local id, copies = ARGV[3], 1
-- The same task id may wait more than once (a retry published twice).
while redis.call('HSETNX', KEYS[2], id, ARGV[4]) == 0 do
    copies = copies + 1
    id = ARGV[3] .. '#' .. copies
end
redis.call('ZADD', KEYS[1], due, id)
redis.call('SADD', KEYS[3], ARGV[1])
return 1
