# What tttnn is not built for is refused when it is configured, in a sentence. Tried alone, too:
#   cmake -DTTTNN_BYTE_ORDER=BIG_ENDIAN -DTTTNN_FREE_THREADED=0 -P cmake/platform.cmake
if(TTTNN_BYTE_ORDER STREQUAL "BIG_ENDIAN")
  message(FATAL_ERROR "tttnn must be built for a little-endian processor, got a big-endian one: its files are "
    "little-endian, and are mapped as they are.")
endif()
if(TTTNN_FREE_THREADED)
  message(FATAL_ERROR "tttnn must be built for a CPython with a global interpreter lock, got a free-threaded one: the "
    "lock protects what a store, an index and an arena share. Use the ordinary build of the same version.")
endif()
