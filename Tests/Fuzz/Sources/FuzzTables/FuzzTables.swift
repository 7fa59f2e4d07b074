import PMConform

// The input is a table of any kind. What must hold: no crash, and an error that names a line that exists.

/// One run: the entry that libFuzzer calls with each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ data: UnsafePointer<UInt8>, _ size: Int) -> Int32 {
  let bytes = Array(UnsafeBufferPointer(start: data, count: size))
  do throws(TableError) {
    let table = try TruthTable.parse(bytes, name: "fuzz-6.1.tsv")
    // Rows without results are enough to run every report path.
    _ = ConformReport(
      of: table, outcomes: Array(repeating: .played([:]), count: table.rows.count))
  } catch {
    precondition(!error.description.isEmpty)
  }
  return 0
}
