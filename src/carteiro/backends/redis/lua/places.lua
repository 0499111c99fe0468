-- Places of others: channels, lists and streams that any client may read.
--
-- A place is {kind, name, length or false}, and its route {{}, {}, false, place}. An entry is the body or, for a stream,
-- its fields and values. `length` is about how many entries the stream keeps.
--
-- Invariant: what is of another kind than the place is refused before anything is written to it.

-- The error, if a place is something else. To be asked before anything is done: a script that fails undoes nothing.
local function misplaced(place)
  if not place or place[1] == 'channel' then return nil end
  local kind = call('TYPE', place[2]).ok
  if kind == 'none' or kind == place[1] then return nil end
  return redis.error_reply('MISPLACED ' .. place[1] .. ' ' .. kind .. ' ' .. place[2])
end

-- Put entries there; `heard` gets how many listen, for each that goes to a channel.
local function send(place, entries, heard)
  local kind, name, length = unpack(place)
  if kind == 'list' then
    count('RPUSH', name, entries)
  elseif kind == 'channel' then
    for _, body in ipairs(entries) do
      local listeners = call('PUBLISH', name, body)
      if heard then heard[#heard + 1] = listeners end
    end
  else
    for _, fields in ipairs(entries) do
      if length then
        call('XADD', name, 'MAXLEN', '~', string.format('%d', length), '*', unpack(fields))
      else
        call('XADD', name, '*', unpack(fields))
      end
    end
  end
end
