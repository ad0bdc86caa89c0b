-- Replace a task's state unless it has succeeded already, and tell those who wait.
-- KEYS: 1 result
-- ARGV: 1 value, 2 time to live in s (0 for ever), 3 SHA-1 of the value the client has seen and
--       knows not to be a success, or ""
-- Returns 1 when stored, 0 when there was a success, else the stored value: one that only the
-- client can decode (pickled, compressed).
local function keep(...)
    if ARGV[2] == '0' then
        return redis.call('SET', KEYS[1], ARGV[1], ...)
    end
    return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2], ...)
end
if not keep('NX') then
    local found = redis.call('GET', KEYS[1])
    local head = '{"status": "'
    if string.sub(found, 1, #head) == head then
        if string.sub(found, #head + 1, #head + 8) == 'SUCCESS"' then
            return 0
        end
    elseif found ~= '' and redis.sha1hex(found) ~= ARGV[3] then
        return found
    end
    keep()
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
