#!lua flags=allow-oom
-- Join: add members to sets, each on its own, with what is written when its set is full.
--
-- needs     common entries joins
-- keys      joins and its sets, the store
-- request   time, [key, member, actor, size, lifetime or false, writes]…
-- answer    for each whether its emits are to be published: 1 or 0
--
-- It may exceed the server's memory limit, as a settle does.
--
-- Invariant: a set is completed once, by the add that fills it.

local complete = {}
for i = 2, #request do
  complete[#complete + 1] = make(request[i]) and 1 or 0
end
done_writing()
return complete
