-- One round of the leader: take over dead consumers, promote due messages, wake consumers.
-- KEYS: 1 leader, 2 leases, 3 being reaped (set), 4 queues with delayed messages (set),
--       5 consumed queues (zset), 6 paused queues (set)
-- ARGV: 1 consumer, 2 leader's term in ms, 3 key prefix, 4 messages to promote at most,
--       5 ms after which a queue nobody consumes is forgotten, 6 server time in ms when this was
--       asked, or 0 to take over nobody, 7... priority suffixes
-- Returns nil for a follower, else {promoted, consumers woken, ms until the next message is due or
-- -1, in-flight hashes to empty...}.
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then
    return nil
end
redis.call('ZREM', KEYS[2], '') -- a write that needs no memory first: see renew.lua
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local prefix = ARGV[3]
local own = prefix .. 'cloche:'
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)

local expired = {}
-- A call that waited in the socket of a stopped server comes before the renewals it held up.
if ms - ARGV[6] < tonumber(ARGV[2]) then
    expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ms, 'LIMIT', 0, 20)
end
for _, consumer in ipairs(expired) do
    redis.call('ZREM', KEYS[2], consumer)
    local inflight = own .. 'inflight:' .. consumer
    if redis.call('EXISTS', inflight) == 1 then
        redis.call('RENAME', inflight, own .. 'reaping:' .. consumer)
        redis.call('SADD', KEYS[3], consumer)
    end
end

local promoted, woken, next_due = 0, 0, -1
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[4])) do
    local waiting, texts = own .. 'delayed:' .. queue, own .. 'delayed-messages:' .. queue
    local ids = redis.call('ZRANGEBYSCORE', waiting, '-inf', ms, 'LIMIT', 0, ARGV[4])
    if #ids > 0 then
        local due = redis.call('HMGET', texts, unpack(ids))
        local lists, order = {}, {}
        for _, text in ipairs(due) do
            if text then
                local cut = string.find(text, ':', 1, true)
                local key = prefix .. queue .. string.sub(text, 1, cut - 1)
                if not lists[key] then
                    lists[key] = {}
                    order[#order + 1] = key
                end
                table.insert(lists[key], string.sub(text, cut + 1))
            end
        end
        for _, key in ipairs(order) do
            redis.call('LPUSH', key, unpack(lists[key]))
        end
        redis.call('ZREM', waiting, unpack(ids))
        redis.call('HDEL', texts, unpack(ids))
        promoted = promoted + #ids
    end
    local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
    if #first == 0 then
        redis.call('SREM', KEYS[4], queue)
    else
        local rest = math.max(0, tonumber(first[2]) - ms)
        if next_due < 0 or rest < next_due then
            next_due = rest
        end
    end
end

redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', ms - ARGV[5])
local paused = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[6])) do
    paused[name] = true
end
local queues, lists = {}, {}
for _, queue in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    if not paused[queue] then
        queues[#queues + 1] = queue
        for s = 7, #ARGV do
            lists[#lists + 1] = prefix .. queue .. ARGV[s]
        end
    end
end
local waiting = 0 -- usually nothing does: one question for a thousand lists, not two for each queue
for first = 1, #lists, 1000 do
    waiting = waiting + redis.call('EXISTS', unpack(lists, first, math.min(first + 999, #lists)))
end
for _, queue in ipairs(waiting > 0 and queues or {}) do
    local wakeup = own .. 'bell:' .. queue
    if redis.call('EXISTS', wakeup) == 0 then
        local keys = {}
        for s = 7, #ARGV do
            keys[#keys + 1] = prefix .. queue .. ARGV[s]
        end
        if redis.call('EXISTS', unpack(keys)) > 0 then
            redis.call('LPUSH', wakeup, '1')
            woken = woken + 1
        end
    end
end

local reply = redis.call('SMEMBERS', KEYS[3])
return {promoted, woken, next_due, unpack(reply)}
