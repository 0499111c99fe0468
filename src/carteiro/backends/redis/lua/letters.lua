#!lua flags=no-writes,allow-oom
-- Letters: dead letters, oldest first.
--
-- needs     common burial
-- keys      dead and what begins with it
-- request   time, queue of the dead or false for all, ids or false, limit or 0 for none, id that they follow
-- answer    id and letter of each, the first of them if they are large: who wants the others asks again
--
-- Invariant: it changes nothing, and what it answers follows `after` without a gap.

local answer, size = {}, 0
for _, id in ipairs(letters(request[2], request[3], request[4], request[5])) do
  local letter = call('HGET', base .. ':dead', id)
  answer[#answer + 1] = id
  answer[#answer + 1] = letter
  size = size + #letter
  if size >= BYTES then break end
end
return answer
