#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>

namespace tttnn {

ThreadPool::ThreadPool(int threads) {
  // Workers inherit this mask: signals belong to the caller's threads. Python notices one only when its main thread is
  // interrupted, so a Ctrl-C taken by a worker could wait for ever. Faults are a thread's own: a blocked one is the end
  // of the process, where a handler may have helped (map_guard.h).
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  job_added_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::drain(Job& job) {
  while (!job.failed.load(std::memory_order_relaxed)) {
    const std::size_t i = job.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= job.tasks) return;
    try {
      (*job.task)(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!job.error) job.error = std::current_exception();
      job.failed.store(true, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    job_added_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    std::shared_ptr<Job> job = jobs_.front();
    if (--job->helpers_wanted == 0) jobs_.pop_front();
    ++job->helpers_active;
    lock.unlock();
    drain(*job);
    lock.lock();
    if (--job->helpers_active == 0) helper_left_.notify_all();
  }
}

void ThreadPool::run(std::size_t tasks, const std::function<void(std::size_t)>& task, int max_threads) {
  if (tasks == 0) return;
  int helpers = static_cast<int>(workers_.size());
  if (max_threads > 0) helpers = std::min(helpers, max_threads - 1);
  helpers = static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(helpers), tasks - 1));

  auto job = std::make_shared<Job>();
  job->task = &task;
  job->tasks = tasks;
  job->helpers_wanted = helpers;
  job->helpers_active = 0;
  if (helpers > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(job);
    }
    if (helpers == 1) {
      job_added_.notify_one();
    } else {
      job_added_.notify_all();
    }
  }
  drain(*job);
  std::unique_lock<std::mutex> lock(mutex_);
  jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), job), jobs_.end());
  helper_left_.wait(lock, [&] { return job->helpers_active == 0; });
  if (job->error) std::rethrow_exception(job->error);
}

namespace {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

ThreadPool& shared_pool() {
  static std::mutex mutex;
  static ThreadPool* pool = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (pool == nullptr || owner != getpid()) {
    // After a fork the old pool's threads are gone: it is left behind, since joining them would wait for ever.
    pool = new ThreadPool(usable_cores());
    owner = getpid();
  }
  return *pool;
}

}  // namespace tttnn
