# Third-party C and C++ sources come from hash-pinned Python source distributions, fetched when CMake configures.
# Nothing of theirs is committed here, and no system -dev package is needed.

# tttnn_fetch_sdist(NAME VERSION SHA256 OUT): sets OUT to the unpacked source folder.
function(tttnn_fetch_sdist NAME VERSION SHA256 OUT)
  set(folder "${CMAKE_BINARY_DIR}/sdist/${NAME}-${VERSION}")
  if(NOT EXISTS "${folder}/PKG-INFO")
    set(download "${CMAKE_BINARY_DIR}/sdist/download")
    file(MAKE_DIRECTORY "${download}")
    set(requirements "${download}/${NAME}.txt")
    file(WRITE "${requirements}" "${NAME}==${VERSION} --hash=sha256:${SHA256}\n")
    message(STATUS "Fetching the sources of ${NAME} ${VERSION}")
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -m pip --disable-pip-version-check download --quiet --no-deps
              --no-binary "${NAME}" --require-hashes --requirement "${requirements}" --dest "${download}"
      RESULT_VARIABLE failed ERROR_VARIABLE errors)
    set(archive "${download}/${NAME}-${VERSION}.tar.gz")
    if(failed OR NOT EXISTS "${archive}")
      string(TOUPPER "${NAME}" variable)
      message(FATAL_ERROR
        "${NAME} ${VERSION} could not be fetched with pip (exit status ${failed}).\n${errors}\n"
        "Without a network, unpack its source distribution and pass -DTTTNN_ZSTD=PATH or -DTTTNN_HNSWLIB=PATH.")
    endif()
    # Not file(ARCHIVE_EXTRACT): it refuses a path that the locale cannot write, where these names need no locale.
    execute_process(
      COMMAND "${CMAKE_COMMAND}" -E tar xzf "download/${NAME}-${VERSION}.tar.gz"
      WORKING_DIRECTORY "${CMAKE_BINARY_DIR}/sdist" RESULT_VARIABLE failed ERROR_VARIABLE errors)
    if(failed)
      message(FATAL_ERROR "${archive} could not be unpacked: ${errors}")
    endif()
  endif()
  set(${OUT} "${folder}" PARENT_SCOPE)
endfunction()
