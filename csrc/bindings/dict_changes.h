// Whether one of some dicts has been written to. Python can tell without a look at what they hold:
// since 3.12 it calls whoever watches a dict; before, it counted the writes to each.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "bindings/python.h"

namespace mobilenet_ext {

using Dicts = std::vector<PyObject*>;  // borrowed

#if PY_VERSION_HEX >= 0x030C0000

class DictChanges {
 public:
  explicit DictChanges(const Dicts& dicts) {
    static const int watcher = PyDict_AddWatcher(count);
    can_watch_ = watcher >= 0 && !is_mute();
    for (PyObject* dict : dicts) can_watch_ = can_watch_ && PyDict_Watch(watcher, dict) == 0;
    if (!can_watch_) PyErr_Clear();  // no watcher is left: then a change is always possible
  }

  // Since the last forget(), or ever.
  bool any() const { return !can_watch_ || seen_ != writes; }
  void forget() { seen_ = writes; }

 private:
  // To dicts that anybody watches here. Few are written to once a model is built.
  inline static std::atomic<uint64_t> writes = 0;

  // Python 3.13.0 tells nobody of an attribute that was set (gh-125608).
  static bool is_mute() { return Py_Version >= 0x030D0000 && Py_Version < 0x030D01F0; }

  bool can_watch_;
  uint64_t seen_ = writes - 1;

  static int count(PyDict_WatchEvent, PyObject*, PyObject*, PyObject*) {
    ++writes;
    return 0;
  }
};

#else

class DictChanges {
 public:
  explicit DictChanges(const Dicts& dicts) {
    for (PyObject* dict : dicts) seen_.push_back({reinterpret_cast<PyDictObject*>(dict), 0});
  }

  // Since the last forget(), or ever.
  bool any() const {
    bool is_changed = false;
    for (const Seen& s : seen_) is_changed |= s.dict->ma_version_tag != s.version;
    return is_changed;
  }
  void forget() {
    for (Seen& s : seen_) s.version = s.dict->ma_version_tag;
  }

 private:
  struct Seen {
    const PyDictObject* dict;
    uint64_t version;
  };
  std::vector<Seen> seen_;
};

#endif

}  // namespace mobilenet_ext
