-- For wrk: sends the requests of the file that is its first argument, one after the other, from the beginning again
-- at the end. traffic.py writes that file: the length of each request in decimal digits, a line feed, the request.

local threads = 0

-- Once for each thread of wrk, before its `init`.
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local requests = {}
local last = 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local length = file:read("*n")
  while length do
    file:read(1)
    requests[#requests + 1] = file:read(length)
    length = file:read("*n")
  end
  file:close()
  -- Two threads are not to send the same request at the same time.
  last = math.floor(number * #requests / 2)
end

function request()
  last = last % #requests + 1
  return requests[last]
end
