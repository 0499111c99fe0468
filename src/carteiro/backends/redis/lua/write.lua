#!lua flags=allow-oom
-- Write: each change to the store on its own.
--
-- needs     common entries
-- keys      store, store:keys, store:expiries
-- request   time, [key, value or false, lifetime or false, version expected or false]…
-- answer    for each whether it found the version that it expected: 1 or 0
--
-- It may exceed the server's memory limit: a worker with a rate limit has to write before it empties a full server.
--
-- Invariant: a change is made if and only if the version is the one expected, and makes it one higher.

local done, keys = {}, {}
for i = 2, #request do keys[i - 1] = request[i][1] end
look_up(keys)
for i = 2, #request do
  done[#done + 1] = write(request[i]) and 1 or 0
end
done_writing()
return done
