package main

import (
	"math"
	"slices"
)

// tooWide is how uncertain a median may be for it to mean something.
const tooWide = 0.20

// quantile is the q-quantile of v, which must not be empty, by linear
// interpolation.
func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// spread is the width of the middle half of v, relative to the median.
func spread(v []float64) float64 {
	m := median(v)
	if m == 0 {
		return 0
	}
	return (quantile(v, 0.75) - quantile(v, 0.25)) / m
}

// uncertainty is how far the true median may be from that of v, relative to it,
// at a confidence of about 95 %: 1.57 times the middle half's width over the root
// of the count (McGill, Tukey and Larsen, Variations of Box Plots, 1978).
func uncertainty(v []float64) float64 { return 1.57 * spread(v) / math.Sqrt(float64(len(v))) }

// values picks one number of each sample.
func values(samples []sample, pick func(sample) float64) []float64 {
	v := make([]float64, len(samples))
	for i, s := range samples {
		v[i] = pick(s)
	}
	return v
}

// ratios divides two sides round by round.
func ratios(side, base []sample) []float64 {
	v := make([]float64, min(len(side), len(base)))
	for i := range v {
		v[i] = side[i].Value / base[i].Value
	}
	return v
}
