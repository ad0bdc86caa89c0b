-- Put a snapshot's messages back to the front of their lists.
-- KEYS: 1 snapshots (hash), then pairs: list, its place in the snapshot
-- ARGV: 1 id
-- Returns how many there were.
local count = 0
for i = 2, #KEYS, 2 do
    while redis.call('LMOVE', KEYS[i + 1], KEYS[i], 'LEFT', 'RIGHT') do
        count = count + 1
    end
end
redis.call('HDEL', KEYS[1], ARGV[1])
return count
