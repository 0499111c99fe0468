#!lua flags=allow-oom
-- Exhume: drop dead letters.
--
-- needs     common burial
-- keys      dead and what begins with it
-- request   time, queue of the dead, ids or false for all, limit, id that they follow, how old they must be
-- answer    how many were dropped, and the last id that was looked at, or false if there are no more
--
-- Invariant: a letter goes from `dead`, its orders and its count in one step, and no message with it.

local found = letters(request[2], request[3], request[4], request[5])
local ids, all_words = {}, {}
for i, letter in ipairs(ask('HMGET', base .. ':dead', found)) do
  local words, died_at = read(letter)
  if died_at * 1000000 <= now - request[6] + 0.5 then
    ids[#ids + 1] = found[i]
    all_words[#all_words + 1] = words
  end
end
exhume(ids, all_words)
return {#ids, #found == request[4] and tonumber(found[#found])}
