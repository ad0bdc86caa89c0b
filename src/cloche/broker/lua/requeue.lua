-- Move messages out of an in-flight hash to where they belong, each only if it is still there.
-- KEYS: 1 in-flight hash
-- ARGV: 1 "RPUSH" to put them to the front (consumers pop from the right), "LPUSH" to the back,
--       then triples: field, list to push to, message ("" for the stored one)
-- Returns how many were moved.
local moved = 0
for i = 2, #ARGV, 3 do
    local stored = redis.call('HGET', KEYS[1], ARGV[i])
    if stored then
        redis.call('HDEL', KEYS[1], ARGV[i])
        local message = ARGV[i + 2]
        if message == '' then
            message = stored
        end
        redis.call(ARGV[1], ARGV[i + 1], message)
        moved = moved + 1
    end
end
return moved
