#!lua flags=no-writes,allow-oom
-- Letters: dead letters, oldest first.
--
-- needs     common burial
-- request   time, queue of the dead or false for all, ids or false, limit or 0 for none
-- answer    id and letter of each

local answer = {}
for _, id in ipairs(letters(request[2], request[3], request[4])) do
  answer[#answer + 1] = id
  answer[#answer + 1] = call('HGET', base .. ':dead', id)
end
return answer
