// What the operating system refused, as an Error that names the file and, where there is one, the remedy.
#pragma once

#include <string>

#include "error.h"

namespace tttnn {

// "path: what: the system's reason. Remedy." of an errno; kNotFound for ENOENT, kIo for the rest.
Error io_error(const std::string& path, const char* what, int reason);

// Whether an errno says that a file system lacks an optional service: locks, or syncing of files or folders.
bool is_missing_service(int reason) noexcept;

}  // namespace tttnn
