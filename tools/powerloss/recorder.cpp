// Records every change of files under $POWERLOSS_ROOT, in order, into $POWERLOSS_LOG: preloaded into the process under
// test, so that what SQLite writes is seen as well as what Python writes. One record a call, after it succeeded:
//   op (1) | path length (4) | path | second path length (4) | second path | offset (8) | size (8) | data (size, writes)
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace {

std::mutex guard;
int log_handle = -1;
std::string root;

template <typename F>
F real(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

void put(std::string& out, const void* data, size_t size) { out.append(static_cast<const char*>(data), size); }

bool is_ours(const std::string& path) {
  if (root.empty()) {
    const char* given = getenv("POWERLOSS_ROOT");
    root = given ? given : "/nowhere";
  }
  return path.compare(0, root.size(), root) == 0;
}

void record(char op, const std::string& path, const std::string& other, uint64_t offset, uint64_t size,
            const void* data) {
  if (!is_ours(path)) return;
  static auto real_open = real<int (*)(const char*, int, ...)>("open");
  static auto real_write = real<ssize_t (*)(int, const void*, size_t)>("write");
  std::string out;
  uint32_t length = path.size(), other_length = other.size();
  put(out, &op, 1);
  put(out, &length, 4);
  out += path;
  put(out, &other_length, 4);
  out += other;
  put(out, &offset, 8);
  put(out, &size, 8);
  if (data) put(out, data, size);
  const std::lock_guard<std::mutex> lock(guard);
  if (log_handle < 0) log_handle = real_open(getenv("POWERLOSS_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  for (size_t done = 0; done < out.size();) {
    const ssize_t count = real_write(log_handle, out.data() + done, out.size() - done);
    if (count < 0) abort();
    done += count;
  }
}

std::string path_of(int handle) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  const ssize_t size = readlink(link, path, sizeof path);
  return size < 0 ? std::string() : std::string(path, size);
}

std::string absolute(const char* path) {
  if (path[0] == '/') return path;
  char here[4096];
  return std::string(getcwd(here, sizeof here) ? here : "") + "/" + path;
}

int opened(int handle, const char* path, bool existed, int flags) {
  if (handle >= 0 && (flags & O_CREAT) && !existed) record('c', absolute(path), "", 0, 0, nullptr);
  if (handle >= 0 && existed && (flags & O_TRUNC)) record('t', absolute(path), "", 0, 0, nullptr);
  return handle;
}

bool exists(const char* path) {
  struct stat found;
  return lstat(path, &found) == 0;
}

int open_any(const char* name, const char* path, int flags, mode_t mode) {
  const bool existed = exists(path);
  return opened(real<int (*)(const char*, int, ...)>(name)(path, flags, mode), path, existed, flags);
}

int openat_any(const char* name, int directory, const char* path, int flags, mode_t mode) {
  const bool existed = exists(path);
  const int handle = real<int (*)(int, const char*, int, ...)>(name)(directory, path, flags, mode);
  return directory == AT_FDCWD || path[0] == '/' ? opened(handle, path, existed, flags) : handle;
}

mode_t mode_of(int flags, va_list arguments) { return flags & O_CREAT ? va_arg(arguments, mode_t) : 0; }

ssize_t pwrite_any(const char* name, int handle, const void* data, size_t size, off_t offset) {
  const ssize_t count = real<ssize_t (*)(int, const void*, size_t, off_t)>(name)(handle, data, size, offset);
  if (count > 0) record('w', path_of(handle), "", offset, count, data);
  return count;
}

int truncate_any(const char* name, int handle, off_t size) {
  const int done = real<int (*)(int, off_t)>(name)(handle, size);
  if (!done) record('t', path_of(handle), "", 0, size, nullptr);
  return done;
}

int allocate_any(const char* name, int handle, off_t offset, off_t size) {
  const int done = real<int (*)(int, off_t, off_t)>(name)(handle, offset, size);
  if (!done) record('a', path_of(handle), "", offset, size, nullptr);
  return done;
}

}  // namespace

extern "C" {

#define OPEN(name)                                     \
  int name(const char* path, int flags, ...) {         \
    va_list arguments;                                 \
    va_start(arguments, flags);                        \
    const mode_t mode = mode_of(flags, arguments);     \
    va_end(arguments);                                 \
    return open_any(#name, path, flags, mode);         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                             \
  int name(int directory, const char* path, int flags, ...) {   \
    va_list arguments;                                           \
    va_start(arguments, flags);                                  \
    const mode_t mode = mode_of(flags, arguments);               \
    va_end(arguments);                                           \
    return openat_any(#name, directory, path, flags, mode);      \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t pwrite(int handle, const void* data, size_t size, off_t offset) {
  return pwrite_any("pwrite", handle, data, size, offset);
}
ssize_t pwrite64(int handle, const void* data, size_t size, off_t offset) {
  return pwrite_any("pwrite64", handle, data, size, offset);
}
ssize_t write(int handle, const void* data, size_t size) {
  static auto call = real<ssize_t (*)(int, const void*, size_t)>("write");
  const ssize_t count = call(handle, data, size);
  if (count > 0 && handle > 2) {
    const std::string path = path_of(handle);
    if (is_ours(path)) {
      const bool appends = fcntl(handle, F_GETFL) & O_APPEND;
      struct stat found;
      const off_t end = appends && !fstat(handle, &found) ? found.st_size : lseek(handle, 0, SEEK_CUR);
      record('w', path, "", end - count, count, data);
    }
  }
  return count;
}
int ftruncate(int handle, off_t size) { return truncate_any("ftruncate", handle, size); }
int ftruncate64(int handle, off_t size) { return truncate_any("ftruncate64", handle, size); }
int posix_fallocate(int handle, off_t offset, off_t size) {
  return allocate_any("posix_fallocate", handle, offset, size);
}
int posix_fallocate64(int handle, off_t offset, off_t size) {
  return allocate_any("posix_fallocate64", handle, offset, size);
}
int fsync(int handle) {
  static auto call = real<int (*)(int)>("fsync");
  const int done = call(handle);
  if (!done) record('s', path_of(handle), "", 0, 0, nullptr);
  return done;
}
int fdatasync(int handle) {
  static auto call = real<int (*)(int)>("fdatasync");
  const int done = call(handle);
  if (!done) record('s', path_of(handle), "", 0, 0, nullptr);
  return done;
}
int unlink(const char* path) {
  static auto call = real<int (*)(const char*)>("unlink");
  const int done = call(path);
  if (!done) record('u', absolute(path), "", 0, 0, nullptr);
  return done;
}
int rename(const char* from, const char* to) {
  static auto call = real<int (*)(const char*, const char*)>("rename");
  const int done = call(from, to);
  if (!done) record('r', absolute(from), absolute(to), 0, 0, nullptr);
  return done;
}
int link(const char* from, const char* to) {
  static auto call = real<int (*)(const char*, const char*)>("link");
  const int done = call(from, to);
  if (!done) record('l', absolute(from), absolute(to), 0, 0, nullptr);
  return done;
}

}  // extern "C"
