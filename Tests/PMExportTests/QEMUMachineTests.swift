import PMExport
import Physmem
import Testing

@Suite("QEMU's machines")
struct QEMUMachineTests {
  @Test(
    "RAM is split where QEMU 7.2 splits it",
    arguments: [
      (QEMUMachine.q35, ByteCount.mib(2815), [ByteCount.mib(2815)]),
      (.q35, .mib(2816), [.gib(2), .mib(768)]), (.q35, .gib(5), [.gib(2), .gib(3)]),
      (.pc, .mib(3583), [.mib(3583)]), (.pc, .mib(3584), [.gib(3), .mib(512)]),
      (.pc, .gib(5), [.gib(3), .gib(2)]),
    ])
  func split(machine: QEMUMachine, memory: ByteCount, sizes: [ByteCount]) {
    let runs = machine.runs(memory: memory)
    #expect(runs.map(\.range.byteCount) == sizes.map(\.rawValue))
    #expect(runs[0].range.start == GPA(0))
    #expect(runs[0].fileOffset == 0)
    guard runs.count > 1 else { return }
    #expect(runs[1].range.start == GPA(4 << 30))
    #expect(runs[1].fileOffset == sizes[0].rawValue)
  }

  @Test("The arguments are those that QEMU takes")
  func arguments() {
    let arguments = QEMUArguments(
      machine: .q35, memory: .mib(1536), process: 7, descriptor: 5, properties: ["merge=off"])
    #expect(
      arguments.line
        == "-machine q35,memory-backend=mem0 -m 1536M -object memory-backend-file,id=mem0,"
        + "size=1536M,mem-path=/proc/7/fd/5,share=on,merge=off")
  }
}
