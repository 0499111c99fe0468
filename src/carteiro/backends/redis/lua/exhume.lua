#!lua flags=allow-oom
-- Exhume: drop dead letters.
--
-- needs     common burial
-- request   time, queue of the dead, ids or false for all, how old they must be
-- answer    how many were dropped

local total = 0
for _, id in ipairs(letters(request[2], request[3], 0)) do
  local letter = call('HGET', base .. ':dead', id)
  local _, died_at = read(letter)
  if died_at * 1000000 <= now - request[4] + 0.5 then
    exhume(id, letter)
    total = total + 1
  end
end
return total
