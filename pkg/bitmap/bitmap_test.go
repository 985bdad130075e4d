package bitmap

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestAgainstMap compares a Set with a plain map under random changes.
func TestAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 300).Draw(t, "n")
		s, want := New(n), map[int]bool{}
		number := rapid.IntRange(-3, n+70)
		for range rapid.IntRange(0, 30).Draw(t, "changes") {
			i, j := number.Draw(t, "i"), number.Draw(t, "j")
			switch rapid.IntRange(0, 4).Draw(t, "change") {
			case 0:
				if i >= 0 && i < n {
					s.Add(i)
					want[i] = true
				}
			case 1:
				s.Remove(i)
				delete(want, i)
			case 2:
				s.AddRange(i, j)
				for k := max(i, 0); k < min(j, n); k++ {
					want[k] = true
				}
			case 4:
				s.RemoveRange(max(i, 0), j)
				for k := max(i, 0); k < min(j, n); k++ {
					delete(want, k)
				}
			case 3:
				o := New(max(i, 0))
				o.AddAll()
				s.Or(o)
				for k := range min(o.Len(), n) {
					want[k] = true
				}
			}
		}
		check(t, s, want)
		i, j := number.Draw(t, "from"), number.Draw(t, "to")
		all := true
		for k := i; k < j; k++ {
			all = all && want[k]
		}
		if s.HasRange(i, j) != all {
			t.Fatalf("HasRange(%d, %d) is %v", i, j, !all)
		}
		back := New(n)
		back.OrBytes(0, s.Bytes())
		check(t, back, want)
		if !bytes.Equal(back.Bytes(), s.Bytes()) {
			t.Fatalf("%x became %x", s.Bytes(), back.Bytes())
		}
	})
}

func check(t *rapid.T, s *Set, want map[int]bool) {
	if s.Count() != len(want) {
		t.Fatalf("%d members, want %d", s.Count(), len(want))
	}
	for i := -2; i < s.Len()+70; i++ {
		if s.Has(i) != want[i] {
			t.Fatalf("Has(%d) is %v", i, s.Has(i))
		}
		next, absent := max(i, 0), max(i, 0)
		for next < s.Len() && !want[next] {
			next++
		}
		for absent < s.Len() && want[absent] {
			absent++
		}
		if got := s.Next(i); got != min(next, s.Len()) {
			t.Fatalf("Next(%d) is %d, want %d", i, got, next)
		}
		if got := s.NextAbsent(i); got != min(absent, s.Len()) {
			t.Fatalf("NextAbsent(%d) is %d, want %d", i, got, absent)
		}
	}
}

func TestNil(t *testing.T) {
	var s *Set
	if s.Len() != 0 || s.Has(0) || s.Count() != 0 || s.Next(0) != 0 || s.NextAbsent(0) != 0 || s.Clone() != nil {
		t.Error("the nil set is not empty")
	}
}
