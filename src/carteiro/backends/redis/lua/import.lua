#!lua flags=allow-oom
-- Import: take over what others have put into a list or a stream, or sent through a channel, into a queue of ours.
--
-- needs     common lanes leasing places fanout
-- keys      the list or stream, meta, routes, and what publish reaches
-- request   time, version, queue, route, room, kind, and then
--           list      name, topic, rows, largest, id
--           stream    name, topic, rows, largest, consumer group, where it begins if it is gone, field of the body
--           channel   entries
-- answer    how many were taken, whether there is no more, of a stream the id of the last one or false, and where those
--           are that were too large; STALE or MISPLACED, and nothing done
--
-- Invariant: what is taken is in the queues of the route in the same step, and what is not stays where it was. No more is
-- taken than there is room for beside what the queue has visible, so that others who read there get their share.
--
-- `rows` is as many rows as may be taken, in one string. A body of more than `largest` bytes, which no claim could bring,
-- is taken by nobody: of a list it is put aside, a stream has it still. It may exceed the server's memory limit: what is
-- full is emptied so.

local BYTES = 8 * 1024 * 1024 -- of bodies in one call, after which the rest has to wait
local AT_A_TIME = 100
local READER = 'carteiro' -- in the consumer group: it never has anything pending

local version, queue, route, room, kind = request[2], request[3], request[4], request[5], request[6]

local function visible()
  return call('LLEN', queue .. ':ready')
    + call('ZCOUNT', queue .. ':due', '-inf', now)
    + call('ZCOUNT', queue .. ':leases', '-inf', now)
end

-- -- records (see `ports/records.py`) ---------------------------------------------------------------------------------

local SEQUENCES = { -- of UTF-8, by what they begin with
  '[\194-\223][\128-\191]',
  '\224[\160-\191][\128-\191]',
  '[\225-\236\238\239][\128-\191][\128-\191]',
  '\237[\128-\159][\128-\191]',
  '\240[\144-\191][\128-\191][\128-\191]',
  '[\241-\243][\128-\191][\128-\191][\128-\191]',
  '\244[\128-\143][\128-\191][\128-\191]',
}

-- What is to be text, as text: of what is no UTF-8, each byte beyond ASCII as `\xff`.
local function text(value)
  if string.find(value, '[\128-\255]') then
    local rest = value
    for _, sequence in ipairs(SEQUENCES) do rest = string.gsub(rest, sequence, '?') end
    if string.find(rest, '[\128-\255]') then
      value = string.gsub(value, '[\128-\255]', function(byte)
        return string.format('\\x%02x', string.byte(byte))
      end)
    end
  end
  return cmsgpack.pack(value)
end

local function binary(body)
  local size = #body
  if size < 256 then return '\196' .. string.char(size) .. body end
  if size < 65536 then return '\197' .. struct.pack('>H', size) .. body end
  return '\198' .. struct.pack('>I', size) .. body
end

-- `headers` is packed already: name and value of each.
local function element(row, id, topic, body, key, headers, correlation_id)
  return table.concat({
    row, '\151', text(id), text(topic), binary(body), key and text(key) or '\192',
    '\222', struct.pack('>H', #headers / 2), table.concat(headers), text(correlation_id),
  })
end

-- The fields of an entry that has no body of its own, in their order.
local function as_json(fields)
  local parts = {}
  for i = 1, #fields, 2 do
    parts[#parts + 1] = cjson.encode(fields[i]) .. ':' .. cjson.encode(fields[i + 1])
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

-- -- what is taken ----------------------------------------------------------------------------------------------------

local entries, size, no_more, oversized = {}, 0, false, {}

local function row_for(rows)
  return string.sub(rows, #entries * ROW + 1, (#entries + 1) * ROW)
end

-- Take by `take(how many)`, which answers how many there were, until there is no more room or no more: first one, and
-- from then on as many as are likely to be small enough.
local function fill(take)
  while #entries < room and size < BYTES do
    local likely = #entries == 0 and 1 or (BYTES - size) / math.max(size / #entries, 1)
    local wanted = math.min(room - #entries, AT_A_TIME, math.max(math.floor(likely), 1))
    if take(wanted) < wanted then
      no_more = true
      return
    end
  end
end

local function from_list(name, topic, rows, largest, id)
  fill(function(wanted)
    local bodies = call('LPOP', name, wanted) or {}
    for _, body in ipairs(bodies) do
      if #body > largest then
        oversized[#oversized + 1] = base .. ':oversized:' .. name
        call('RPUSH', base .. ':oversized:' .. name, body)
      else
        local own_id = id .. '.' .. (#entries + 1)
        entries[#entries + 1] = element(row_for(rows), own_id, topic, body, nil, {}, own_id)
        size = size + #body
      end
    end
    return #bodies
  end)
end

local function read_group(name, group, start, wanted)
  local function read()
    return redis.pcall(
      'XREADGROUP', 'GROUP', group, READER, 'COUNT', wanted, 'NOACK', 'STREAMS', name, '>'
    )
  end
  local found = read()
  if found and found.err and string.find(found.err, 'NOGROUP', 1, true) then
    call('XGROUP', 'CREATE', name, group, start, 'MKSTREAM') -- the stream, or its group, was taken away
    found = read()
  end
  if found and found.err then error(found) end
  return found and found[1][2] or {}
end

local function of_entry(row, topic, stream_name, entry, body_field)
  local id, fields = entry[1], entry[2]
  local own = {}
  for i = 1, #fields, 2 do own[fields[i]] = fields[i + 1] end
  local headers = {text('stream-id'), text(id)}
  local own_id, key, body = stream_name .. ':' .. id, nil, own[body_field]
  local correlation_id = own_id
  if not body then
    body = as_json(fields)
  else
    own_id, key = own.id or own_id, own.key
    correlation_id = own['correlation-id'] or own_id
    local taken = {[body_field] = true, id = true, key = true, ['correlation-id'] = true, ['stream-id'] = true}
    for i = 1, #fields, 2 do
      if not taken[fields[i]] then
        headers[#headers + 1] = text(fields[i])
        headers[#headers + 1] = text(fields[i + 1])
      end
    end
  end
  return element(row, own_id, topic, body, key, headers, correlation_id)
end

local function from_stream(name, topic, rows, largest, group, start, body_field)
  local last = false
  fill(function(wanted)
    local found = read_group(name, group, last or start, wanted)
    for _, entry in ipairs(found) do
      last = entry[1]
      local one = of_entry(row_for(rows), topic, name, entry, body_field)
      if #one > largest then
        oversized[#oversized + 1] = last
      else
        entries[#entries + 1] = one
        size = size + #one
      end
    end
    return #found
  end)
  return last
end

if stale(version) then return redis.error_reply('STALE the routes have changed') end
local wrong = kind ~= 'channel' and misplaced({kind, request[7]})
if wrong then return wrong end

local last = false
room = room - visible()
if kind == 'list' then
  from_list(unpack(request, 7, 11))
elseif kind == 'stream' then
  last = from_stream(unpack(request, 7, 13))
else
  for i = 1, math.min(room, #request[7]) do entries[i] = request[7][i] end
end
if #entries > 0 then fan_out(route, entries) end
return {#entries, no_more and 1 or 0, last, oversized}
