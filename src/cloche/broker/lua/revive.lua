-- Put a dead letter back into its queue, if nobody did so before.
-- KEYS: 1 dead letters, 2 their index, 3 queue list
-- ARGV: 1 id, 2 message
local found = redis.call('HDEL', KEYS[1], ARGV[1])
if found == 1 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('LPUSH', KEYS[3], ARGV[2])
end
return found
