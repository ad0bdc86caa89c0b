-- Move delayed messages to another queue, the next due first; they stay due when they were.
-- KEYS: 1 delayed messages by due time (zset), 2 their text (hash), 3 and 4 the same of the other
--       queue, 5 queues with delayed messages (set)
-- ARGV: 1 at most, 2 the other queue
-- Returns how many were moved.
local moved = 0
while moved < tonumber(ARGV[1]) do
    local first = redis.call('ZPOPMIN', KEYS[1])
    if #first == 0 then
        break
    end
    local text = redis.call('HGET', KEYS[2], first[1])
    if text then
        redis.call('HDEL', KEYS[2], first[1])
        local id, copies = first[1], 1
        local task = string.match(id, '^(.*)#%d+$') or id -- see park.lua
        while redis.call('HSETNX', KEYS[4], id, text) == 0 do
            copies = copies + 1
            id = task .. '#' .. copies
        end
        redis.call('ZADD', KEYS[3], first[2], id)
        redis.call('SADD', KEYS[5], ARGV[2])
        moved = moved + 1
    end
end
return moved
