-- Empty a queue, what is put aside included; keep all of it as a snapshot if that has an id.
-- KEYS: 1 snapshots (hash), 2 queues with delayed messages (set), 3 delayed messages by due time
--       (zset), 4 their text (hash), 5 and 6 the places of these two in the snapshot,
--       then pairs: list, its place in the snapshot
-- ARGV: 1 queue, 2 id or "", 3 s to keep it, 4 record up to the count: '{"queue": ..., "messages": '
-- Returns how many messages there were; without any no snapshot is made.
local moves = {{KEYS[3], KEYS[5]}, {KEYS[4], KEYS[6]}}
local count = redis.call('ZCARD', KEYS[3])
for i = 7, #KEYS, 2 do
    count = count + redis.call('LLEN', KEYS[i])
    moves[#moves + 1] = {KEYS[i], KEYS[i + 1]}
end
if count == 0 then
    return 0
end
redis.call('SREM', KEYS[2], ARGV[1])
for _, move in ipairs(moves) do
    if ARGV[2] == '' then
        redis.call('UNLINK', move[1])
    elseif redis.call('EXISTS', move[1]) == 1 then
        redis.call('RENAME', move[1], move[2])
        redis.call('EXPIRE', move[2], ARGV[3])
    end
end
if ARGV[2] ~= '' then
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[4] .. count .. '}')
end
return count
