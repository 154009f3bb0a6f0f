import Routing
import Testing
import Vocabulary

@Suite struct WaitingLineTests {
    @Test("Each client in its turn, each client's turns in theirs")
    func fair() {
        var line = WaitingLine<String>()
        for i in 1...3 { _ = line.join("a\(i)", key: 1, by: later(100)) }
        for i in 1...2 { _ = line.join("b\(i)", key: 2, by: later(100)) }
        var room = 2
        var served: [String] = []
        func serve(_ more: Int) {
            room = more
            line.serve { waiter in
                guard room > 0 else { return .waits }
                room -= 1
                served.append(waiter)
                return .served
            }
        }
        serve(1)
        serve(1)
        serve(3)
        #expect(served == ["a1", "b1", "a2", "b2", "a3"] && line.isEmpty)
    }

    @Test("One for which there is nothing holds up nobody behind it, of its own client neither")
    func own() {
        var line = WaitingLine<Int>()
        for i in 1...4 { _ = line.join(i, key: 1, by: later(100)) }
        var asked: [Int] = []
        line.serve {
            asked.append($0)
            return $0 == 2 || $0 == 4 ? .served : .waits
        }
        #expect(asked == [1, 2, 1, 3, 4, 1, 3] && line.count == 2)
    }

    @Test("The line is bounded, and those whose time is over leave it in the order in which they came")
    func bounds() {
        var line = WaitingLine<Int>(countMax: 3)
        let joined = (1...4).map { line.join($0, key: Int64($0 % 2), by: later($0 * 10)) }
        #expect(joined == [true, true, true, false])
        let late = line.expired(later(20))
        #expect(late == [1, 2] && line.count == 1)
        line.remove { $0 == 3 }
        let rest = line.expired(.never)
        #expect(line.isEmpty && rest == [])
    }
}
