// A small persistent pool of threads. Several callers may run jobs on it at once; the caller works too.
//
// run() returns when every task of its job has ended, and rethrows the first failure. A task may not call run() on the
// same pool. shared_pool() starts anew in a forked child, where the parent's threads do not exist.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tttnn {

class ThreadPool {
 public:
  // `threads` counts the caller: a pool of 1 has no thread of its own.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0) ... task(tasks - 1), on at most `max_threads` threads (0: all), in any order.
  void run(std::size_t tasks, const std::function<void(std::size_t)>& task, int max_threads = 0);

 private:
  struct Job {
    const std::function<void(std::size_t)>* task;
    std::size_t tasks;
    int helpers_wanted;  // guarded by mutex_
    int helpers_active;  // guarded by mutex_
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;  // guarded by mutex_
  };

  void work();
  void drain(Job& job);

  std::mutex mutex_;
  std::condition_variable job_added_;
  std::condition_variable helper_left_;
  std::deque<std::shared_ptr<Job>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

// The pool of this process, with one thread per core that the process may use. Never destroyed.
ThreadPool& shared_pool();

}  // namespace tttnn
