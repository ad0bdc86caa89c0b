-- Move messages from one list to another, oldest first, behind what is there.
-- KEYS: 1 from, 2 to
-- ARGV: 1 at most
local moved = 0
while moved < tonumber(ARGV[1]) and redis.call('LMOVE', KEYS[1], KEYS[2], 'RIGHT', 'LEFT') do
    moved = moved + 1
end
return moved
