internal import Foundation

/// A report as one page of HTML for people: drawings and tables, nothing from elsewhere, no script,
/// readable in light and in dark, and well-formed XML.
public struct BenchmarkPage {
  let report: BenchmarkReport

  /// The page of a report.
  public init(_ report: BenchmarkReport) { self.report = report }

  /// The page.
  public var html: String {
    let sections = [head, summary, ratioSection, valueSection, caseTable] + measurementSections
    return (sections.filter { !$0.isEmpty } + ["</body>", "</html>", ""]).joined(separator: "\n")
  }

  private var head: String {
    """
    <!DOCTYPE html>
    <html lang="en" xmlns="http://www.w3.org/1999/xhtml">
    <head>
    <meta charset="utf-8"/>
    <meta name="viewport" content="width=device-width"/>
    <title>physmem bench</title>
    <style>
    \(BenchmarkPage.style)
    </style>
    </head>
    <body>
    <h1>physmem bench</h1>
    """
  }

  private static let style = """
    :root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --soft: #59636e;
      --rule: #d9dee3; --base: #8b949e; --good: #17803d; --bad: #c0302b;
      --s0: #2a6fdb; --s1: #c4570b; --s2: #17803d; --s3: #8444c9; --s4: #c0306b; --s5: #0b7d8a;
      --s6: #857000; --s7: #59636e; }
    @media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ec;
      --soft: #9aa4ae; --rule: #30363d; --base: #6e7781; --good: #56c97c; --bad: #ff7b72;
      --s0: #6ea8fe; --s1: #f0954d; --s2: #56c97c; --s3: #bd93f0; --s4: #f27aa8; --s5: #4fc7d3;
      --s6: #cdb945; --s7: #9aa4ae; } }
    body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; padding: 0 1.5em;
      max-width: 70em; color: var(--ink); background: var(--paper); }
    h1 { font-size: 1.6em; margin-bottom: .2em; }
    h2 { font-size: 1.2em; margin: 2em 0 .3em; }
    p { max-width: 48em; }
    p.facts, p.legend { color: var(--soft); }
    table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
    th, td { padding: .25em .7em; text-align: left; border-bottom: 1px solid var(--rule);
      white-space: nowrap; }
    th { color: var(--soft); font-weight: 600; }
    .number { text-align: right; }
    .wide { overflow-x: auto; }
    figure { margin: 0; }
    .many { display: flex; flex-wrap: wrap; gap: 1em 1.5em; }
    .good { color: var(--good); }
    .bad { color: var(--bad); }
    svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink); }
    svg.key { vertical-align: -3px; margin: 0 .2em 0 .8em; }
    .name { font: 12px ui-monospace, monospace; }
    .tick, .note { fill: var(--soft); font-size: 11px; }
    .rule { stroke: var(--rule); }
    .base { stroke: var(--base); }
    .reference { stroke: var(--base); stroke-dasharray: 4 3; }
    .range { stroke: var(--color); stroke-width: 2; stroke-linecap: round; opacity: .55; }
    .dot { fill: var(--color); }
    .ring { fill: var(--paper); stroke: var(--color); stroke-width: 2; }
    .cross { fill: none; stroke: var(--color); stroke-width: 2.5; }
    .stroke { fill: none; stroke: var(--ink); stroke-width: 3; }
    .triangle { fill: var(--paper); stroke: var(--ink); stroke-width: 1.3; }
    .line { fill: none; stroke: var(--color); stroke-width: 2; }
    .limit { fill: none; stroke: var(--color); stroke-width: 1.5; stroke-dasharray: 3 4; }
    .area { fill: var(--color); opacity: .8; }
    .s0 { --color: var(--s0); } .s1 { --color: var(--s1); } .s2 { --color: var(--s2); }
    .s3 { --color: var(--s3); } .s4 { --color: var(--s4); } .s5 { --color: var(--s5); }
    .s6 { --color: var(--s6); } .s7 { --color: var(--s7); } .sbad { --color: var(--bad); }
    @media print { body { max-width: none; } }
    """

  private var summary: String {
    let machine = report.machine
    let met = report.cases.filter(\.met).count
    let goals = report.cases.compactMap(\.goalMet)
    let processors = machine.cpus == 1 ? "1 processor" : "\(machine.cpus) processors"
    let limit =
      report.limitNanoseconds.map {
        " A get and a put in plain C on one hot word, the unit of many bars, took \(PlotNumber.digits($0)) ns."
      } ?? ""
    let verdict =
      report.cases.isEmpty
      ? ""
      : """
      <p><b class="\(report.met ? "good" : "bad")">\(met) of \(report.cases.count) bars met</b>, \
      \(goals.filter(\.self).count) of \(goals.count) goals reached.</p>
      """
    return """
      <p class="facts">\(Markup.escaped(machine.model)), \(processors), \
      \(PlotNumber.bytes(machine.memory)), \(Markup.escaped(machine.kernel)).\(limit)</p>
      \(verdict)
      """
  }

  // MARK: cases

  /// Cases whose bar is a ratio to the limit.
  private var ratioSection: String {
    let rows = report.cases.compactMap { item -> DotPlot.Row? in
      guard item.barKind == .ratio, let ratio = item.ratio else { return nil }
      var values = [
        DotPlot.Value(value: item.bar, mark: .stroke, title: "bar: \(PlotNumber.digits(item.bar))")
      ]
      let goal = BenchmarkPage.goalRatio(item)
      if let goal {
        values.append(
          .init(value: goal, mark: .triangle, title: "goal: \(PlotNumber.digits(goal))"))
      }
      values.append(
        .init(
          value: ratio, mark: item.met ? .dot : .cross, color: item.met ? 0 : 4,
          title: "\(item.name): \(PlotNumber.digits(ratio)) of the limit"))
      // The range takes its colour from the first value.
      values[0].color = item.met ? 0 : 4
      let bounds = item.ratios.flatMap { ratios in
        ratios.min().flatMap { low in ratios.max().map { low...$0 } }
      }
      return DotPlot.Row(
        label: item.name, values: values, range: bounds,
        note: "\(PlotNumber.digits(ratio)) × (bar \(PlotNumber.digits(item.bar)))")
    }
    guard !rows.isEmpty else { return "" }
    let plot = DotPlot(label: "Ratio to the limit per case", rows: rows, reference: 1)
    return """
      <h2>Beside the limit</h2>
      <p>How much longer than its limit in plain C each case takes, measured in turn with it. The line goes \
      from the smallest to the largest round.</p>
      \(BenchmarkPage.legend)
      \(plot.svg)
      """
  }

  /// The goal as a ratio to the limit, whatever it is compared with.
  private static func goalRatio(_ item: BenchmarkResult) -> Double? {
    guard let goal = item.goal else { return nil }
    if item.goalKind == .ratio { return goal }
    return item.limit.flatMap { $0 > 0 ? goal / $0 : nil }
  }

  /// Cases whose bar is on the value, each as a part of its bar, so that they stand on one axis.
  private var valueSection: String {
    let rows = report.cases.compactMap { item -> DotPlot.Row? in
      guard item.barKind != .ratio, let value = item.value, item.bar > 0 else { return nil }
      // A throughput turned over: left is better for all.
      func part(_ value: Double) -> Double {
        guard item.barKind == .atLeast else { return value / item.bar }
        // No throughput at all has no place on the axis; 0 is left out of the drawing.
        return value > 0 ? item.bar / value : 0
      }
      var values = [
        DotPlot.Value(
          value: 1, mark: .stroke, color: item.met ? 0 : 4,
          title: "bar: \(PlotNumber.digits(item.bar)) \(item.unit)")
      ]
      if let goal = item.goal, item.goalKind == item.barKind {
        values.append(
          .init(
            value: part(goal), mark: .triangle,
            title: "goal: \(PlotNumber.digits(goal)) \(item.unit)"))
      }
      values.append(
        .init(
          value: part(value), mark: item.met ? .dot : .cross, color: item.met ? 0 : 4,
          title: "\(item.name): \(PlotNumber.digits(value)) \(item.unit)"))
      var range: ClosedRange<Double>?
      if let low = item.min, let high = item.max, low > 0 {
        range = min(part(low), part(high))...max(part(low), part(high))
      }
      let sign = item.barKind == .atLeast ? "≥" : "≤"
      return DotPlot.Row(
        label: item.name, values: values, range: range,
        note:
          "\(PlotNumber.digits(value)) \(item.unit) (\(sign) \(PlotNumber.digits(item.bar)))")
    }
    guard !rows.isEmpty else { return "" }
    let plot = DotPlot(label: "Values as parts of their bars", rows: rows, reference: 1)
    return """
      <h2>Beside a fixed bar</h2>
      <p>Values as parts of their bar: left of 1 the bar is met. Throughputs are turned over, so that left \
      is better for all.</p>
      \(BenchmarkPage.legend)
      \(plot.svg)
      """
  }

  private static let legend: String = {
    func key(_ shape: String) -> String {
      "<svg class=\"key\" xmlns=\"http://www.w3.org/2000/svg\" width=\"14\" height=\"16\" aria-hidden=\"true\">\(shape)</svg>"
    }
    return """
      <p class="legend">\
      \(key("<circle class=\"dot s0\" cx=\"7\" cy=\"8\" r=\"4\"/>"))median, bar met \
      \(key("<path class=\"cross s4\" d=\"M3 4L11 12M3 12L11 4\"/>"))median, bar not met \
      \(key("<path class=\"stroke\" d=\"M7 0V16\"/>"))bar \
      \(key("<path class=\"triangle\" d=\"M3 5L11 5L7 11Z\"/>"))goal</p>
      """
  }()

  private var caseTable: String {
    guard !report.cases.isEmpty else { return "" }
    let summaries = Dictionary(
      BenchmarkCase.all().map { ($0.name, $0.summary) }, uniquingKeysWith: { first, _ in first })
    func number(_ value: Double?) -> String { value.map(PlotNumber.digits) ?? "–" }
    func aim(_ number: Double?, _ kind: BenchmarkCase.Bar.Kind?, _ unit: String) -> String {
      guard let number, let kind else { return "–" }
      let text = PlotNumber.digits(number)
      switch kind {
      case .ratio: return "≤ \(text) ×"
      case .atMost: return "≤ \(text) \(unit)"
      case .atLeast: return "≥ \(text) \(unit)"
      }
    }
    let rows = report.cases.map { item in
      [
        item.name, item.reason ?? summaries[item.name] ?? "", number(item.value), item.unit,
        number(item.limit), number(item.ratio), aim(item.bar, item.barKind, item.unit),
        item.met ? "yes" : "no", aim(item.goal, item.goalKind, item.unit),
        number(item.goalDistance),
        number(item.min), number(item.max), "\(item.runs)",
      ]
    }
    return """
      <h2>All cases</h2>
      <p>Value, limit and ratio are medians of the rounds; smallest and largest are values of a round.</p>
      \(Markup.table(
        ["case", "what", "value", "unit", "limit", "ratio", "bar", "met", "goal", "of the goal",
         "smallest", "largest", "rounds"], rows, textColumns: [0, 1, 3, 7]))
      """
  }
}
