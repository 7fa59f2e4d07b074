import Foundation
import FoundationXML
import Testing

@testable import PMBench

@Suite struct PageTests {
  /// What a parser saw.
  private final class Seen: NSObject, XMLParserDelegate {
    var elements: [String: Int] = [:]
    var attributes: [(String, String)] = []
    var text = ""

    func parser(
      _ parser: XMLParser, didStartElement name: String, namespaceURI: String?,
      qualifiedName: String?, attributes found: [String: String]
    ) {
      elements[name, default: 0] += 1
      attributes += found.map { ($0.key, $0.value) }
    }

    func parser(_ parser: XMLParser, foundCharacters string: String) { text += string }
  }

  private func seen(_ html: String) throws -> Seen {
    let parser = XMLParser(data: Data(html.utf8))
    let seen = Seen()
    parser.delegate = seen
    let isWellFormed = parser.parse()
    try #require(
      isWellFormed, "line \(parser.lineNumber): \(String(describing: parser.parserError))")
    return seen
  }

  @Test func `The page is well-formed and asks for nothing from elsewhere`() throws {
    let page = try seen(BenchmarkPage(ReportFixture.full).html)
    for name in ["script", "link", "img", "iframe", "object", "use", "image"] {
      #expect(page.elements[name] == nil, "\(name)")
    }
    for (name, value) in page.attributes {
      #expect(!["src", "href", "style", "onclick", "onload"].contains(name))
      if name != "xmlns" { #expect(!value.contains("://")) }
    }
    #expect(!page.text.contains("url(") && !page.text.contains("@import"))
    #expect(page.text.contains("prefers-color-scheme: dark"))
  }

  @Test func `Every section is there, and every number has a place`() throws {
    let html = BenchmarkPage(ReportFixture.full).html
    let page = try seen(html)
    #expect(page.elements["h2"] == 10)
    for title in [
      "Beside the limit", "Beside a fixed bar", "All cases", "Contention", "Scaling",
      "Single operations", "Beside other allocators", "What memory costs", "The real KVM",
      "Not measured",
    ] { #expect(html.contains("<h2>\(title)</h2>"), "\(title)") }
    // 2 of cases with bar and goal; contention 1, scaling 1, latency 1, allocators 1, backings 3.
    #expect(page.attributes.count { $0.0 == "role" && $0.1 == "img" } == 9)
    #expect(page.attributes.count { $0.0 == "class" && $0.1.hasPrefix("stroke s") } == 4)
    #expect(page.attributes.count { $0.0 == "class" && $0.1.hasPrefix("triangle s") } == 3)
    for (name, value) in page.attributes
    where ["x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"].contains(name) {
      #expect(value == "device-width" || Double(value)?.isFinite == true, "\(name)=\(value)")
    }
    for (name, value) in page.attributes where name == "d" {
      #expect(!value.contains("nan") && !value.contains("inf"), "\(value)")
    }
  }

  @Test func `Text is escaped`() throws {
    let html = BenchmarkPage(ReportFixture.full).html
    #expect(html.contains("Model &lt;A&gt; &amp; &quot;B&quot;"))
    #expect(html.contains("refcount.pair&lt;x&gt;"))
    #expect(!html.contains("<x>") && !html.contains("<lib>"))
    #expect(try seen(html).text.contains("no \"trace\", none\nat all"))
    #expect(Markup.escaped("a'\u{0}\u{1b}\u{fffe}b") == "a&#39;\u{fffd}\u{fffd}\u{fffd}b")
  }

  @Test func `Allocators that alternate have one mark, others two`() throws {
    var report = ReportFixture.full
    func marks() throws -> [Int] {
      let page = try seen(BenchmarkPage(report).html)
      return ["dot s0", "ring s0"].map { kind in
        page.attributes.count { $0.0 == "class" && $0.1 == kind }
      }
    }
    let both = try marks()
    report.measurements?.allocators[0].putAverage = 0
    let pair = try marks()
    #expect(pair[0] == both[0])
    #expect((both[1], pair[1]) == (1, 0))
    #expect(BenchmarkPage(report).html.contains("21 ns a pair"))
  }

  @Test func `A page of nothing, of zeros and of one value is well-formed too`() throws {
    let machine = ReportFixture.machine
    _ = try seen(BenchmarkPage(BenchmarkReport([], machine: machine)).html)
    let zeros = [
      ReportFixture.result("a.b", unit: "KiB", bar: .atMost(64), [0, 0]),
      ReportFixture.result("a.c", bar: .ratio(1), [0], [1]),
      ReportFixture.result("a.d", bar: .atLeast(1), [0]),
      ReportFixture.result("a.e", bar: .ratio(1), [1], [0]),
    ]
    var measured = ReportFixture.measurements
    measured.contention = [
      .init(
        threads: 1, pages: 1, layout: "packed", nanoseconds: 0, limitNanoseconds: 0,
        pairsPerSecond: 0)
    ]
    measured.scaling = [.init(name: "x", threads: 1, operationsPerSecond: 0, idlePercent: 0)]
    measured.latency[0].bins = []
    let html = BenchmarkPage(BenchmarkReport(zeros, measurements: measured, machine: machine)).html
    _ = try seen(html)
    #expect(!html.contains("nan") && !html.contains("\"inf"))
  }

  @Test func `Axes put ends at their ends and ticks between them`() {
    let axis = PlotAxis(.logarithmic, holding: [1, 1000], from: 100, to: 400)
    #expect(axis.place(axis.values.lowerBound) == 100)
    #expect(abs(axis.place(axis.values.upperBound) - 400) < 1e-9)
    #expect(abs(axis.place(31.6227766) - 250) < 0.01)
    #expect(axis.ticks.contains(1) && axis.ticks.contains(10) && axis.ticks.contains(1000))
    let linear = PlotAxis(.linear, holding: [0, 100], from: 0, to: 104 * 4)
    #expect(linear.place(50) == 200)
    #expect(linear.ticks == [0, 50, 100])
    for high in [1.01, 1.5, 3, 20, 1e4, 1e9, 1e18] {
      let ticks = PlotAxis(.logarithmic, holding: [1, high], from: 0, to: 440).ticks
      #expect((2...8).contains(ticks.count), "\(high): \(ticks)")
    }
  }

  @Test func `Numbers have three digits that count`() {
    #expect(PlotNumber.digits(0.012345) == "0.0123")
    #expect(PlotNumber.digits(1.5) == "1.5")
    #expect(PlotNumber.digits(100) == "100")
    #expect(PlotNumber.digits(1234.5) == "1234")
    #expect(PlotNumber.digits(0) == "0")
    #expect(PlotNumber.short(12_345) == "12.3k")
    #expect(PlotNumber.time(1500) == "1.5 µs")
    #expect(PlotNumber.bytes(3 << 29) == "1.5 GiB")
  }
}
