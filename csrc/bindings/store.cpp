// The text store: _core.StoreReader and _core.StoreWriter. Texts are UTF-8 in the file and str in Python.
#include <error.h>
#include <parallel.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <store_reader.h>
#include <store_repair.h>
#include <store_writer.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "bindings.h"
#include "utf8.h"

namespace py = pybind11;

namespace {

using tttnn::StoreReader;
using tttnn::StoreWriter;
using tttnn::TextPlace;
using Ids = py::array_t<std::int64_t, py::array::c_style>;

// A batch below this many bytes of text is decoded by its caller: waking a thread costs more than it saves.
constexpr std::uint64_t kParallelBytes = 128u << 10;

template <class Task>
void for_each(std::size_t count, int threads, const Task& task) {
  if (threads == 1 || count < 2) {
    for (std::size_t i = 0; i < count; ++i) task(i);
  } else {
    tttnn::shared_pool().run(count, task, threads);
  }
}

[[noreturn]] void not_utf8(const StoreReader& reader, const TextPlace& place) {
  throw tttnn::Error(tttnn::ErrorCode::kStoreCorrupt, reader.path() + ": document " + std::to_string(place.document) +
                                                          " at byte " + std::to_string(place.offset) +
                                                          " is not UTF-8. Restore the file or rebuild it.");
}

// One text on its way into a str. ASCII is decoded straight into it; other texts are decoded into a buffer, measured,
// and widened into it. Only allocate() and finish() need the GIL.
class PendingText {
 public:
  // Decodes a text that is not ASCII into place.text_size bytes that live until finish() returns.
  void decode(const StoreReader& reader, const TextPlace& place, unsigned char* buffer) {
    reader.read(place, buffer);
    bytes_ = buffer;
    shape_ = shape_of_utf8(bytes_, static_cast<std::size_t>(place.text_size));
  }

  static bool needs_decode(const TextPlace& place) { return !place.ascii; }

  // A str of 0 or 1 characters is shared by the interpreter and must not be written into: it is made by finish().
  void allocate(const TextPlace& place) {
    if (place.ascii) shape_.characters = static_cast<std::size_t>(place.text_size);
    if (shape_.characters <= 1) return;
    PyObject* text = PyUnicode_New(static_cast<Py_ssize_t>(shape_.characters), shape_.max_character());
    if (text == nullptr) throw py::error_already_set();
    text_ = py::reinterpret_steal<py::object>(text);
    data_ = PyUnicode_DATA(text);
    kind_ = static_cast<int>(PyUnicode_KIND(text));
  }

  void fill(const StoreReader& reader, const TextPlace& place) {
    const std::size_t size = static_cast<std::size_t>(place.text_size);
    if (place.ascii) {
      reader.read(place, data_ != nullptr ? data_ : &single_);
      return;
    }
    if (data_ == nullptr) return;
    const bool valid =
        kind_ == PyUnicode_1BYTE_KIND   ? decode_utf8(bytes_, size, static_cast<Py_UCS1*>(data_), shape_.characters)
        : kind_ == PyUnicode_2BYTE_KIND ? decode_utf8(bytes_, size, static_cast<Py_UCS2*>(data_), shape_.characters)
                                        : decode_utf8(bytes_, size, static_cast<Py_UCS4*>(data_), shape_.characters);
    if (!valid) not_utf8(reader, place);
  }

  py::object finish(const StoreReader& reader, const TextPlace& place) {
    if (text_) return std::move(text_);
    const char* bytes = place.ascii ? &single_ : reinterpret_cast<const char*>(bytes_);
    PyObject* text = PyUnicode_DecodeUTF8(bytes, static_cast<Py_ssize_t>(place.text_size), nullptr);
    if (text == nullptr) {
      if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw py::error_already_set();
      PyErr_Clear();
      not_utf8(reader, place);
    }
    return py::reinterpret_steal<py::object>(text);
  }

 private:
  py::object text_;
  void* data_ = nullptr;
  int kind_ = 0;
  char single_ = 0;
  const unsigned char* bytes_ = nullptr;
  Utf8Shape shape_;
};

// Not a vector: its bytes need not be cleared before they are written.
class Buffer {
 public:
  unsigned char* reserve(std::uint64_t size) {
    if (size > size_ || size_ > kKept) {
      bytes_.reset(new unsigned char[static_cast<std::size_t>(size) + 1]);
      size_ = size;
    }
    return bytes_.get();
  }

 private:
  static constexpr std::uint64_t kKept = 4u << 20;  // one long text must not hold its memory for ever
  std::unique_ptr<unsigned char[]> bytes_;
  std::uint64_t size_ = 0;
};

py::object read_text(const StoreReader& reader, std::uint64_t document) {
  TextPlace place;
  PendingText text;
  {
    // Safe: the caller holds a reference to the reader, and no Python object is touched.
    py::gil_scoped_release release;
    place = reader.locate(document);
    thread_local Buffer buffer;
    if (PendingText::needs_decode(place)) text.decode(reader, place, buffer.reserve(place.text_size));
  }
  text.allocate(place);
  {
    // Safe: nobody else has seen the new str, so nobody reads it while it is filled.
    py::gil_scoped_release release;
    text.fill(reader, place);
  }
  return text.finish(reader, place);
}

// Which documents a batch needs, each once and in the order of the file, and which of them each id asks for.
struct Batch {
  explicit Batch(const Ids& ids)
      : wanted(ids.data(), ids.data() + ids.size()), position(static_cast<std::size_t>(ids.size())) {
    std::sort(wanted.begin(), wanted.end());
    wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
    for (std::size_t i = 0; i < position.size(); ++i) {
      position[i] =
          static_cast<std::size_t>(std::lower_bound(wanted.begin(), wanted.end(), ids.data()[i]) - wanted.begin());
    }
  }

  // One list item for each id; the same object where ids repeat.
  py::list publish(const std::vector<py::object>& objects) const {
    py::list result(position.size());
    for (std::size_t i = 0; i < position.size(); ++i) {
      PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i), objects[position[i]].inc_ref().ptr());
    }
    return result;
  }

  std::vector<std::int64_t> wanted;
  std::vector<std::size_t> position;
};

// Texts of a batch that are decoded before any is published: bounds the memory for texts that are not ASCII.
constexpr std::uint64_t kWaveBytes = 32u << 20;

py::list read_texts(const StoreReader& reader, const Ids& documents, int threads) {
  const Batch batch(documents);
  const std::size_t count = batch.wanted.size();
  std::vector<TextPlace> places(count);
  {
    // Safe: only C++ memory is read and written.
    py::gil_scoped_release release;
    reader.locate(batch.wanted.data(), count, places.data());
  }
  std::vector<py::object> objects(count);
  std::vector<PendingText> texts(count);
  std::vector<Buffer> buffers(count);
  std::vector<std::size_t> wide;
  for (std::size_t begin = 0, end = 0; begin < count; begin = end) {
    std::uint64_t bytes = 0;
    wide.clear();
    for (; end < count && (end == begin || bytes < kWaveBytes); ++end) {
      bytes += places[end].text_size;
      if (PendingText::needs_decode(places[end])) wide.push_back(end);
    }
    const int most = bytes < kParallelBytes ? 1 : threads;
    if (!wide.empty()) {
      // Safe: no Python object is touched.
      py::gil_scoped_release release;
      for_each(wide.size(), most, [&](std::size_t i) {
        const std::size_t at = wide[i];
        texts[at].decode(reader, places[at], buffers[at].reserve(places[at].text_size));
      });
    }
    for (std::size_t i = begin; i < end; ++i) texts[i].allocate(places[i]);
    {
      // Safe: the str objects are new and nobody else has seen them; each is filled by one thread.
      py::gil_scoped_release release;
      for_each(end - begin, most, [&](std::size_t i) { texts[begin + i].fill(reader, places[begin + i]); });
    }
    for (std::size_t i = begin; i < end; ++i) {
      objects[i] = texts[i].finish(reader, places[i]);
      buffers[i] = Buffer();
    }
  }
  return batch.publish(objects);
}

py::list read_metas(const StoreReader& reader, const Ids& documents) {
  std::vector<std::string> metas;
  {
    // Safe: as in read_texts.
    py::gil_scoped_release release;
    metas = reader.metas(documents.data(), static_cast<std::size_t>(documents.size()));
  }
  py::list result(metas.size());
  for (std::size_t i = 0; i < metas.size(); ++i) result[i] = py::bytes(metas[i]);
  return result;
}

py::array_t<std::int32_t> source_codes(const StoreReader& reader) {
  py::array_t<std::int32_t> codes(static_cast<py::ssize_t>(reader.size()));
  std::int32_t* data = codes.mutable_data();
  // Safe: the array is new and nobody else has seen it.
  py::gil_scoped_release release;
  reader.source_codes(data);
  return codes;
}

py::dict info(const StoreReader& reader) {
  const tttnn::Footer& footer = reader.footer();
  py::dict result;
  result["format"] = std::to_string(tttnn::kFormatMajor) + "." + std::to_string(tttnn::kFormatMinor);
  result["store_id"] = tttnn::hex(footer.store_id);
  result["documents"] = footer.documents;
  result["file_bytes"] = footer.file_size;
  result["text_bytes"] = footer.text_bytes;
  result["meta_bytes"] = footer.meta_bytes;
  result["largest_document"] = footer.largest_document;
  result["ascii_documents"] = footer.ascii_documents;
  result["level"] = reader.header().level;
  result["dictionary_bytes"] = reader.header().dictionary_size;
  result["index_bytes"] = footer.index_pages * tttnn::kPageBytes;
  return result;
}

// `progress` must outlive what is returned; it is called with the GIL taken back. Ctrl-C ends the work here, too.
tttnn::StoreProgress report_to(const py::object& progress) {
  return [&progress](std::uint64_t done, std::uint64_t total) {
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done, total);
  };
}

void verify(const StoreReader& reader, bool full, const py::object& progress) {
  const tttnn::StoreProgress report = report_to(progress);
  // Safe: no Python object is touched but in `report`.
  py::gil_scoped_release release;
  reader.verify(full, report);
}

py::dict summary_of(const tttnn::StoreSummary& summary) {
  py::dict result;
  result["documents"] = summary.documents;
  result["text_bytes"] = summary.text_bytes;
  result["file_bytes"] = summary.file_bytes;
  result["store_id"] = tttnn::hex(summary.store_id);
  return result;
}

py::dict repair(const std::string& path, const std::string& target, int threads, const py::object& progress) {
  const tttnn::StoreProgress report = report_to(progress);
  tttnn::RepairReport repaired;
  {
    // Safe: no Python object is touched but in `report`.
    py::gil_scoped_release release;
    repaired = tttnn::repair_store(path, target, threads, report);
  }
  py::dict result;
  result["summary"] = summary_of(repaired.written);
  result["lost_texts"] = repaired.lost_texts;
  result["lost_metas"] = repaired.lost_metas;
  result["header_intact"] = repaired.header_intact;
  result["tail_known"] = repaired.tail_known;
  return result;
}

void bind_reader(py::module_& module) {
  py::class_<StoreReader, std::shared_ptr<StoreReader>>(module, "StoreReader")
      .def(py::init([](const std::string& path, bool pread) {
             // Safe: no Python object is touched.
             py::gil_scoped_release release;
             return std::make_shared<StoreReader>(path, pread ? tttnn::FileAccess::kPread : tttnn::FileAccess::kMmap);
           }),
           py::arg("path"), py::arg("pread") = false)
      .def("__len__", &StoreReader::size)
      .def("read_text", &read_text, py::arg("document"))
      .def("read_texts", &read_texts, py::arg("documents"), py::arg("threads") = 0)
      .def(
          "read_meta",
          [](const StoreReader& reader, std::uint64_t document) {
            std::string meta;
            {
              // Safe: no Python object is touched.
              py::gil_scoped_release release;
              meta = reader.meta(document);
            }
            return py::bytes(meta);
          },
          py::arg("document"))
      .def("read_metas", &read_metas, py::arg("documents"))
      .def("sources", [](const StoreReader& reader) { return reader.sources(); })
      .def("source_codes", &source_codes)
      .def("dictionary", [](const StoreReader& reader) { return py::bytes(reader.dictionary()); })
      .def("info", &info)
      .def("verify", &verify, py::arg("full") = true, py::arg("progress") = py::none());
}

// Valid as long as `text`. Throws UnicodeEncodeError for a lone surrogate.
std::string_view utf8(const py::str& text) {
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (bytes == nullptr) throw py::error_already_set();
  return {bytes, static_cast<std::size_t>(size)};
}

void bind_writer(py::module_& module) {
  py::class_<StoreWriter>(module, "StoreWriter")
      .def(py::init([](const std::string& path, int level, std::size_t dictionary_bytes, int threads, bool resume,
                       std::uint64_t commit_bytes, const std::string& dictionary) {
             tttnn::WriterOptions options;
             options.level = level;
             options.dictionary_bytes = dictionary_bytes;
             options.threads = threads;
             options.resume = resume;
             options.commit_bytes = commit_bytes;
             options.dictionary = dictionary;
             // Safe: no Python object is touched.
             py::gil_scoped_release release;
             return std::make_unique<StoreWriter>(path, options);
           }),
           py::arg("path"), py::arg("level"), py::arg("dictionary_bytes"), py::arg("threads"), py::arg("resume"),
           py::arg("commit_bytes"), py::arg("dictionary"))
      .def(
          "append",
          [](StoreWriter& writer, const py::str& text, const py::bytes& meta, const py::str& source) {
            const std::string_view text_bytes = utf8(text);
            const std::string_view source_bytes = utf8(source);
            const std::string_view meta_bytes = meta;
            // Safe: the caller holds text, meta and source while their bytes are copied; a writer has one caller.
            py::gil_scoped_release release;
            return writer.append(text_bytes, meta_bytes, source_bytes);
          },
          py::arg("text"), py::arg("meta"), py::arg("source"))
      .def("finish",
           [](StoreWriter& writer) {
             tttnn::StoreSummary summary;
             {
               // Safe: no Python object is touched.
               py::gil_scoped_release release;
               summary = writer.finish();
             }
             return summary_of(summary);
           })
      // Safe to release: no Python object is touched.
      .def("abandon", &StoreWriter::abandon, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("documents", &StoreWriter::documents)
      .def_property_readonly("committed", &StoreWriter::committed)
      .def_property_readonly("locked", &StoreWriter::locked);
}

}  // namespace

void bind_store(py::module_& module) {
  bind_reader(module);
  bind_writer(module);
  module.def(
      "train_dictionary",
      [](const std::vector<std::string>& texts, std::size_t dictionary_bytes, int level) {
        std::string dictionary;
        {
          // Safe: the texts were copied into C++ strings.
          py::gil_scoped_release release;
          dictionary = tttnn::dictionary_for({texts.begin(), texts.end()}, dictionary_bytes, level);
        }
        return py::bytes(dictionary);
      },
      py::arg("texts"), py::arg("dictionary_bytes"), py::arg("level"));
  module.def("repair_store", &repair, py::arg("path"), py::arg("target"), py::arg("threads"),
             py::arg("progress") = py::none());
}
