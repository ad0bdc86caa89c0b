-- Settle acknowledgements, then move up to N messages from queues into the consumer's
-- in-flight hash. Field of a message there: "<number>/<queue key>".
-- KEYS: 1 leases, 2 in-flight hash, 3 paused queues (set)
-- ARGV: 1 consumer, 2 number of the first message, 3 N, 4 "1" to share N among the queues,
--       then four counted lists: fields to settle, queues, their wake-up keys, priority suffixes;
--       then the key prefix of queues
-- Returns {number settled, queue index, suffix index, message, queue index, ...}.
local number, wanted, shared = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local position = 5
local function list()
    local items, count = {}, tonumber(ARGV[position])
    for i = 1, count do
        items[i] = ARGV[position + i]
    end
    position = position + count + 1
    return items
end
local settle, queues, wakeups, suffixes = list(), list(), list(), list()
local prefix = ARGV[position]

if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return redis.error_reply('LEASELOST the lease of this consumer ran out')
end
local reply = {0}
if #settle > 0 then
    reply[1] = redis.call('HDEL', KEYS[2], unpack(settle))
end

local open = {}
local paused = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    paused[name] = true
end
for i, name in ipairs(queues) do
    if not paused[name] then
        open[#open + 1] = i
    end
end

-- Pops and records in the same breath. A queue that cannot be popped (wrong type, no
-- permission) must not abort the script after another queue was popped: its messages would be
-- recorded but never told to the consumer.
local failure
local function take(i, s, count)
    local key = prefix .. queues[i] .. suffixes[s]
    local batch = redis.pcall('RPOP', key, count)
    if not batch then
        return 0
    end
    if batch.err then
        failure = batch
        return 0
    end
    local fields = {}
    for _, message in ipairs(batch) do
        fields[#fields + 1] = number .. '/' .. key
        fields[#fields + 1] = message
        reply[#reply + 1] = i
        reply[#reply + 1] = s
        reply[#reply + 1] = message
        number = number + 1
    end
    redis.call('HSET', KEYS[2], unpack(fields))
    wanted = wanted - #batch
    return #batch
end

for s = 1, #suffixes do
    local rest = {}
    local share = wanted
    if shared and #open > 1 then
        share = math.ceil(wanted / #open)
    end
    for _, i in ipairs(open) do
        local count = math.min(share, wanted)
        if count > 0 and take(i, s, count) == count then
            rest[#rest + 1] = i
        end
    end
    for _, i in ipairs(rest) do
        if wanted > 0 then
            take(i, s, wanted)
        end
    end
end
if failure and #reply == 1 then
    return failure
end

-- Messages may remain: wake the next consumer.
if wanted == 0 then
    for _, i in ipairs(open) do
        if redis.call('EXISTS', wakeups[i]) == 0 then
            local keys = {}
            for s = 1, #suffixes do
                keys[s] = prefix .. queues[i] .. suffixes[s]
            end
            if redis.call('EXISTS', unpack(keys)) > 0 then
                redis.call('LPUSH', wakeups[i], '1')
            end
        end
    end
end
return reply
