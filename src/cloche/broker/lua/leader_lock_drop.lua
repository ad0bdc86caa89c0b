-- Give the leader lock up, if it is ours.
-- KEYS: 1 the leader lock
-- ARGV: 1 who had it
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
