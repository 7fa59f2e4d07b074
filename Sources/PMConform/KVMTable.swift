public import PMPageAllocator

/// KVM's truth table of one era: how a guest access to each kind of page ends, what it does to the page's
/// count, and which marks it leaves. Every cell is found by an experiment on a machine of its own.
public struct KVMTable: Sendable {
  /// Which KVM.
  public let era: KernelModel.KVM
  /// The cells: the table of kinds first, then the permission variants.
  public let cells: [KVMCell]

  /// Makes all experiments of an era, or those of one kind of page. Throws where the host of the
  /// experiments has no memory for them.
  public init(_ era: KernelModel.KVM, kind: KVMPageKind? = nil) throws {
    self.era = era
    var cells: [KVMCell] = []
    for kind in KVMPageKind.allCases.filter({ kind == nil || $0 == kind }) {
      for area in KVMArea.columns {
        for access in KVMAccess.allCases {
          cells.append(try KVMExperiment.run(kind, area, access, era))
        }
      }
    }
    for area in KVMArea.variants {
      for kind in area.kinds.filter({ kind == nil || $0 == kind }) {
        for access in KVMAccess.allCases {
          cells.append(try KVMExperiment.run(kind, area, access, era))
        }
      }
    }
    self.cells = cells
  }

  /// One cell, by an experiment; nil where the table has none such.
  public static func cell(
    _ kind: KVMPageKind, _ area: KVMArea, _ access: KVMAccess, _ era: KernelModel.KVM
  ) throws -> KVMCell? {
    area.kinds.contains(kind) ? try KVMExperiment.run(kind, area, access, era) : nil
  }

  /// The cell of a kind, an area and an access.
  public subscript(_ kind: KVMPageKind, _ area: KVMArea, _ access: KVMAccess) -> KVMCell? {
    cells.first { $0.kind == kind && $0.area == area && $0.access == access }
  }
}
