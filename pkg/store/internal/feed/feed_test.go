package feed_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/internal/feed"
)

type event = store.Event[string, int]

func put(key string, n int) event { return event{Kind: store.Put, Key: key, Object: n} }

// drain reads what a feed holds. It must be called in a synctest bubble.
func drain(t *testing.T, f *feed.Feed[string, int]) []event {
	var got []event
	out := make(chan event)
	ctx, cancel := context.WithCancel(t.Context())
	go f.Deliver(ctx, out)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ev := range out {
			got = append(got, ev)
		}
	}()
	synctest.Wait()
	cancel()
	<-done
	return got
}

func TestFewEventsAllArriveInOrder(t *testing.T) { synctest.Test(t, fewEventsAllArriveInOrder) }

func fewEventsAllArriveInOrder(t *testing.T) {
	f := feed.New[string, int]()
	var want []event
	for i := range feed.Limit {
		want = append(want, put(fmt.Sprint(i%3), i))
	}
	f.Push(want...)
	if got := drain(t, f); !slices.Equal(got, want) {
		t.Fatalf("got %d events, want %d, in order", len(got), len(want))
	}
}

func TestManyEventsAreFolded(t *testing.T) { synctest.Test(t, manyEventsAreFolded) }

func manyEventsAreFolded(t *testing.T) {
	f := feed.New[string, int]()
	f.Push(put("early", 1), event{Kind: store.Synced}, put("gone", 1))
	const changes = 100 * feed.Limit
	for i := range changes {
		f.Push(put("busy", i))
	}
	f.Push(put("early", 2), event{Kind: store.Deleted, Key: "gone"}, event{Kind: store.Synced})
	for i := range 2 * feed.Limit {
		f.Push(put("busy", changes+i))
	}
	got := drain(t, f)
	if len(got) > 2*feed.Limit {
		t.Errorf("%d events were held", len(got))
	}
	last := map[string]event{}
	syncs := 0
	for _, ev := range got {
		if ev.Kind == store.Synced {
			syncs++
			if _, ok := last["early"]; !ok {
				t.Error("synced before what existed had been delivered")
			}
			continue
		}
		last[ev.Key] = ev
	}
	if last["early"].Object != 2 || last["gone"].Kind != store.Deleted || last["busy"].Object != changes+2*feed.Limit-1 || syncs == 0 {
		t.Errorf("ended with %v after %d syncs", last, syncs)
	}
}

func TestFoldingBeginsAnewAfterTheReaderCaughtUp(t *testing.T) {
	synctest.Test(t, foldingBeginsAnewAfterTheReaderCaughtUp)
}

func foldingBeginsAnewAfterTheReaderCaughtUp(t *testing.T) {
	f := feed.New[string, int]()
	for i := range 10 * feed.Limit {
		f.Push(put("a", i))
	}
	drain(t, f)
	f.Push(put("a", 1), put("a", 2))
	if got := drain(t, f); !slices.Equal(got, []event{put("a", 1), put("a", 2)}) {
		t.Fatalf("got %v", got)
	}
}
