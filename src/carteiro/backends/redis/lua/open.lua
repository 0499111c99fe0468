#!lua flags=allow-oom
-- Open: make ready to take over what others put into a list or a stream.
--
-- needs     common places
-- keys      the lists and streams
-- request   time, [kind, name], and of a stream: consumer group, where a new one begins
-- answer    of a stream, the id of the last entry that its group has got; the error MISPLACED for what is something else
--
-- Invariant: what there is in a list or stream, and how far its group has read, stay as they are.

local place, group, start = request[2], request[3], request[4]
local wrong = misplaced(place)
if wrong then return wrong end
if place[1] ~= 'stream' then return false end

local made = redis.pcall('XGROUP', 'CREATE', place[2], group, start, 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
for _, one in ipairs(call('XINFO', 'GROUPS', place[2])) do
  local told = {}
  for i = 1, #one, 2 do told[one[i]] = one[i + 1] end
  if told.name == group then return told['last-delivered-id'] end
end
