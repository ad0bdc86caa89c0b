-- Set a queue's lists aside as a snapshot.
-- KEYS: 1 snapshots (hash), then pairs: list, its place in the snapshot
-- ARGV: 1 id, 2 s to keep it, 3 record up to the count: '{"queue": ..., "messages": '
-- Returns how many messages there were; without any no snapshot is made.
local count = 0
for i = 2, #KEYS, 2 do
    count = count + redis.call('LLEN', KEYS[i])
end
if count == 0 then
    return 0
end
for i = 2, #KEYS, 2 do
    if redis.call('EXISTS', KEYS[i]) == 1 then
        redis.call('RENAME', KEYS[i], KEYS[i + 1])
        redis.call('EXPIRE', KEYS[i + 1], ARGV[2])
    end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. count .. '}')
return count
