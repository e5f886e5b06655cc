import functools
import json
import types

import pytest

from sdpo_jax.envs.mathematics import grader
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits

# Answer, what the response boxes -> score by the official rule, and by the fixed one.
# The official column is what the published code gives with math-verify 0.9, see
# test_official_graders.py: without dollar signs it reads LaTeX as numbers.
CASES = [
    ("42", "42", 1, 1),
    ("42", "43", 0, 0),
    ("42", "42.0", 1, 1),
    ("42", "042", 1, 1),
    ("42", "+42", 0, 1),
    ("-42", "-42", 1, 1),
    ("-42", "42", 0, 0),
    ("42", " 42 ", 1, 1),
    ("42", "42.", 1, 1),
    ("1234", "1,234", 1, 1),
    ("1,234", "1234", 1, 1),
    ("1234567", "1,234,567", 1, 1),
    ("1000000", "10^6", 1, 1),
    ("1000000", "1e6", 0, 1),
    ("0.5", ".5", 1, 1),
    ("0.5", "0.50", 1, 1),
    ("0.333", "1/3", 0, 0),
    ("3.14", "3.1416", 0, 0),
    ("2^{10}", "1024", 0, 1),
    ("5!", "120", 0, 1),
    ("0", "-0", 1, 1),
    ("0", "0.0", 1, 1),
    ("100", "1", 0, 0),
    ("70", "070", 1, 1),
    ("204", "204", 1, 1),
    (r"\frac{1}{2}", "1/2", 1, 1),
    (r"\frac{1}{2}", "0.5", 1, 1),
    (r"\frac12", r"\frac{1}{2}", 0, 1),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", 0, 1),
    (r"\frac{1}{2}", r"\tfrac12", 0, 1),
    (r"\frac{1}{2}", r"\frac{2}{4}", 1, 1),
    (r"\frac{1}{2}", r"\frac{1}{3}", 0, 0),
    (r"-\frac{3}{4}", r"\frac{-3}{4}", 1, 1),
    (r"-\frac{3}{4}", "-0.75", 1, 1),
    (r"\frac{7}{3}", r"2\frac{1}{3}", 0, 1),
    (r"\frac{7}{3}", "2.333", 0, 0),
    (r"50\%", r"50\%", 1, 1),
    (r"50\%", "0.5", 0, 1),
    (r"50\%", "50", 1, 1),
    ("12.5", r"12.5\%", 1, 1),
    ("3/4", "6/8", 1, 1),
    (r"\frac{m}{n}", r"\frac{n}{m}", 0, 0),
    (r"2\sqrt{3}", r"\sqrt{12}", 0, 1),
    (r"2\sqrt{3}", r"2\cdot\sqrt{3}", 1, 1),
    (r"2\sqrt{3}", r"3\sqrt{2}", 0, 0),
    (r"\sqrt{2}", "2^{1/2}", 0, 1),
    (r"\sqrt{2}", "1.414", 0, 0),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 0, 1),
    (r"\sqrt[3]{8}", "2", 0, 1),
    (r"\pi", r"\pi", 1, 1),
    (r"2\pi", r"\pi\cdot 2", 1, 1),
    (r"\pi", "3.14", 0, 0),
    (r"\frac{\pi}{4}", "45", 0, 0),
    ("e^2", "e^{2}", 0, 1),
    (r"\ln 2", r"\ln(2)", 0, 1),
    (r"\log_2 8", "3", 0, 1),
    (r"\sin 30", r"\sin(30)", 0, 1),
    (r"\cos(0)", "1", 0, 1),
    (r"\binom{5}{2}", "10", 0, 1),
    (r"\infty", r"\infty", 1, 1),
    (r"\infty", r"-\infty", 0, 0),
    ("i", "i", 1, 1),
    ("1+2i", "2i+1", 0, 1),
    ("1+2i", "1-2i", 1, 0),
    (r"\left|-3\right|", "3", 0, 1),
    ("2^{-3}", r"\frac{1}{8}", 0, 1),
    ("10^{-2}", "0.01", 0, 1),
    ("x^2+2x+1", "(x+1)^2", 0, 1),
    ("x^2+2x+1", "(x-1)^2", 0, 0),
    ("x+y", "y+x", 0, 1),
    ("xy", "yx", 0, 1),
    ("2x", r"x\cdot 2", 1, 1),
    ("2x", "2y", 1, 0),
    (r"\frac{x}{2}", "0.5x", 0, 1),
    ("x-1", "1-x", 0, 0),
    ("a(b+c)", "ab+ac", 0, 1),
    ("n(n+1)/2", r"\frac{n^2+n}{2}", 0, 1),
    ("x^2", "x^3", 0, 0),
    (r"\sin^2 x+\cos^2 x", "1", 0, 1),
    (r"\frac{1}{x+1}", "(x+1)^{-1}", 0, 1),
    ("3n+1", "1+3n", 0, 1),
    ("x=5", "5", 1, 1),
    ("5", "x=5", 1, 1),
    ("x=5", "x=6", 0, 0),
    ("y=2x+1", "y=1+2x", 0, 1),
    ("y=2x+1", "2x+1", 1, 1),
    ("y=2x+1", "y=2x-1", 1, 0),
    ("x>3", "x>3", 1, 1),
    ("x>3", "3<x", 0, 1),
    ("x>3", r"x\ge 3", 0, 0),
    ("x>3", "x<3", 0, 0),
    (r"x\le 2", r"x\leq 2", 1, 1),
    ("x^2+y^2=1", "y^2+x^2=1", 1, 1),
    ("x=1", "y=1", 1, 0),
    ("(1,2]", "(1, 2]", 0, 1),
    ("(1,2]", "[1,2]", 0, 0),
    ("(1,2]", "(1,2)", 0, 0),
    (r"[0,\infty)", r"[0, \infty)", 0, 1),
    (r"(-\infty,3)", r"\left(-\infty,3\right)", 0, 1),
    (r"(0,1)\cup(2,3)", r"(0,1) \cup (2,3)", 0, 1),
    (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)", 0, 1),
    (r"(0,1)\cup(2,3)", r"(0,1)\cup(2,4)", 0, 0),
    ("[1,3]", r"1\le x\le 3", 0, 0),
    ("(1,3)", "[1,3]", 0, 0),
    ("[-2,5)", "[-2,5)", 1, 1),
    (r"\{1,2,3\}", r"\{3,2,1\}", 0, 1),
    (r"\{1,2,3\}", r"\{1,2\}", 0, 0),
    (r"\{1,2,3\}", "1,2,3", 0, 1),
    ("1,2,3", "1, 2, 3", 0, 1),
    ("1,2", "2,1", 0, 1),
    (r"\{1,2\}", r"\{1,1,2\}", 0, 1),
    ("2,3", "2", 0, 0),
    ("2", "2,3", 0, 0),
    (r"\{\frac12,1\}", r"\{0.5,1\}", 0, 1),
    (r"\emptyset", r"\varnothing", 0, 1),
    ("x=1,2", "1,2", 1, 1),
    (r"1 \text{ and } 2", "1,2", 0, 1),
    (r"\pm 3", "3,-3", 1, 1),
    ("-1, 4", r"4 \text{ or } -1", 0, 1),
    ("(1,2)", "(1,2)", 1, 1),
    ("(1,2)", "(2,1)", 0, 0),
    ("(1,2)", "(1, 2)", 0, 1),
    ("(1,2,3)", "(1,2,3)", 1, 1),
    ("(1,2,3)", "(1,2)", 0, 0),
    (r"(\frac12,0)", "(0.5,0)", 0, 1),
    (r"(3,\frac{\pi}{2})", r"\left(3,\frac{\pi}{2}\right)", 0, 1),
    (r"(3,\frac{\pi}{2})", r"(3,\pi/2)", 0, 1),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        1,
        1,
    ),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1 & 2\\ 3 & 4\end{bmatrix}",
        0,
        1,
    ),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}1&2\\4&3\end{pmatrix}",
        0,
        0,
    ),
    ("5", r"5\text{ cm}", 1, 1),
    ("5", r"5 \text{ meters}", 1, 1),
    (r"5\text{ cm}", "5", 1, 1),
    ("5", r"5^\circ", 1, 1),
    (r"90^\circ", "90", 1, 1),
    ("5", r"\$5", 0, 1),
    ("12", r"12\text{ cm}^2", 1, 1),
    (r"5\text{ cm}", r"6\text{ cm}", 0, 0),
    ("10", r"10\%", 1, 1),
    ("30", r"30\text{ minutes}", 1, 1),
    (r"\$18.90", "18.9", 0, 1),
    ("25", r"25\,\text{mph}", 1, 1),
    ("7", r"7 \mathrm{~kg}", 1, 1),
    ("3", "3 units", 1, 1),
    ("A", "A", 1, 1),
    ("A", "B", 0, 0),
    ("C", r"\text{C}", 0, 1),
    (r"\text{Tuesday}", "Tuesday", 0, 1),
    ("Tuesday", "tuesday", 0, 1),
    ("Tuesday", "Monday", 0, 0),
    (r"\text{(B)}", "(B)", 0, 1),
    ("even", r"\text{even}", 0, 1),
    ("yes", "no", 0, 0),
    (r"\text{No solution}", "no solution", 0, 1),
    ("E", "e", 0, 0),
    ("ABC", "abc", 0, 1),
    ("ABC", "ACB", 0, 0),
    ("2+2", "4", 1, 1),
    ("10_2", "10_2", 1, 1),
    ("1011_2", "1011_{2}", 1, 1),
    ("1011_2", "11", 0, 0),
    ("7", r"\mathbf{7}", 0, 1),
    ("7", r"\displaystyle 7", 1, 1),
    ("7", "{7}", 0, 1),
    ("7", "$7$", 1, 1),
    ("7", r"\left(7\right)", 0, 1),
    ("7", "(7)", 0, 1),
    ("7", r"7\ ", 1, 1),
    ("7", r"\ 7", 1, 1),
    ("7", "7,", 1, 1),
    ("7", r"\boxed{7}", 1, 1),
    ("7", "7 or 8", 0, 0),
    ("7", "?", 0, 0),
    ("7", "seven", 0, 0),
    ("7", "", 0, 0),
    ("7", " ", 0, 0),
    ("7", "7 7", 1, 0),
    ("7", "77", 0, 0),
    ("7", r"\frac{}{}", 0, 0),
    ("7", r"\undefined", 0, 0),
    ("7", "x", 0, 0),
    ("7", "}{", 0, 0),
    ("7", r"\text{7}", 0, 1),
    ("7", r"7\text{}", 1, 1),
    ("7", "__import__('os')", 0, 0),
    ("7", "7;import os", 1, 0),
    ("7", "eval('7')", 0, 0),
    ("7", "1/0", 0, 0),
    ("7", r"\infty", 0, 0),
    ("7", "NaN", 0, 0),
    ("AB", "BA", 0, 0),
    (r"\triangle ABC", r"\triangle ABC", 1, 1),
    (r"\triangle ABC", r"\triangle ACB", 0, 0),
    ("AB=CD", "AB = CD", 0, 1),
    (r"25\%", r"\frac14", 0, 1),
    (r"25\%", "25", 1, 1),
    ("0.25", r"25\%", 0, 1),
    ("1:2", "1:2", 1, 1),
    ("1:2", "2:1", 0, 0),
    (r"\frac{1}{2}", "1:2", 0, 0),
    ("2^{100}", r"2^{99}\cdot 2", 1, 1),
    ("2^{100}", "2^{99}", 1, 0),
    ("0.1+0.2", "0.3", 1, 1),
    ("10000000", "10000001", 0, 0),
    ("0.0001", "0.0002", 0, 0),
    ("1e-5", "0.00001", 0, 1),
    ("7", "8 ? 7", 1, 0),
    ("7", r"8 \sim 7", 1, 0),
    ("7", r"8 \implies 7", 1, 0),
    ("7", "8 | 7", 1, 0),
    ("7", "(((3 7", 1, 0),
    ("7", r"8 \\ 7", 1, 0),
    ("7", "8 $7$", 1, 0),
    ("7", r"\neg 7", 1, 0),
    ("7", r"x \not= 7", 1, 0),
    ("7", "x =/= 7", 1, 0),
    ("7", r"7 \approx 8", 0, 0),
    ("7", "7~8", 1, 0),
    ("7", "7...8", 1, 0),
    ("7", "3\n7", 1, 0),
    ("7", r"\fbox{7} 8", 0, 0),
    ("7", r"\begin{cases} x=3\\ y=7\end{cases}", 1, 0),
    ("7", "3 = 7", 1, 0),
    ("7", "x^2=7", 1, 0),
    ("7", "n! = 7", 1, 0),
    ("7", "x=3=7", 1, 0),
    ("12", r"8 \\ 9 \\ 10 \\ 11 \\ 12", 1, 0),
    ("4", r"n \equiv 1 \pmod 4", 1, 0),
    (r"n\equiv 1\pmod 4", r"n\equiv 3\pmod 4", 1, 0),
    (r"\begin{cases} x=1 \\ y=2\end{cases}", "2", 1, 0),
    (r"3\text{ hours }20\text{ minutes}", r"3\text{ hours }50\text{ minutes}", 1, 0),
    (r"3\text{ hours }20\text{ minutes}", "3", 1, 0),
    (r"5\text{ cm} \times 6\text{ cm}", r"5\text{ cm} \times 9\text{ cm}", 0, 0),
    (r"n^2\text{ if }n\text{ is even}", r"n^2\text{ if }n\text{ is odd}", 0, 0),
    ("5", r"5\text{ is wrong, it is 6}", 0, 0),
    ("12", r"12\text{ cm or }13\text{ cm}", 1, 0),
    ("12", r"12\text{, }13\text{, }14\text{ are candidates}", 1, 0),
    (r"5\text{ hours}", r"5\text{ minutes}", 1, 0),
    (r"5\text{ cm}", r"5\text{ m}", 1, 0),
    (r"50\text{ cents}", r"50\text{ dollars}", 1, 0),
    ("3", r"3\text{ million}", 1, 0),
    (r"3\text{ miles east}", r"3\text{ miles west}", 1, 0),
    ("2t", "2", 1, 0),
    ("2t", "2h", 1, 0),
    ("6h", "6d", 1, 0),
    ("5m", "5g", 1, 0),
    ("5", "5m", 1, 0),
    ("3s+2t", "3s+2", 1, 0),
    ("x^{2}t", "x^{2}s", 0, 0),
    (r"\frac{1}{2} m", r"\frac{1}{2}", 1, 0),
    ("x^2 + c", "x^2 +", 0, 0),
    (r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}", 0, 0),
    (r"\frac{1}{20!}", r"\frac{1}{19!}", 0, 0),
    ("10^{-20}", "10^{-30}", 1, 0),
    ("e^{-40}", "e^{-50}", 0, 0),
    (r"1-\frac{1}{2^{60}}", r"1-\frac{1}{2^{70}}", 1, 0),
    (r"1.6\times10^{-19}", "0.0", 0, 0),
    ("10^{-7}", "0.0", 0, 0),
    (r"\sqrt{2}", "1.414214", 0, 0),
    (r"\pi", "3.141593", 0, 0),
    (r"\frac13", "0.333333", 0, 0),
    ("31/2", "3 1/2", 0, 0),
    ("12", "1 2", 0, 0),
    ("12", r"1 \quad 2", 0, 0),
    ("12", "1$2", 0, 0),
    ("12", "1%2", 0, 0),
    ("R-r", "r-R", 0, 0),
    ("2R", "2r", 1, 0),
    (r"\Delta", r"\delta", 0, 0),
    ("n", "N", 0, 0),
    ("bca", "cab", 0, 0),
    ("cat", "act", 0, 0),
    ("BCA", "abc", 0, 0),
    ("AB", "ba", 0, 0),
    ("TFT", "ttf", 0, 0),
    ("A^{-1}B", "BA^{-1}", 0, 0),
    ("A^T", "A", 0, 0),
    ("(-2,3)", r"\{-2,3\}", 0, 0),
    ("(3,1,2)", r"\{3,1,2\}", 0, 0),
    ("1,2,3", "(3,2,1)", 0, 0),
    ("x=1,y=2", "2,1", 0, 0),
    ("a=3,b=-1", "(-1,3)", 0, 0),
    (r"1,2,\ldots,10", "1,2,10", 1, 0),
    (r"x<1 \text{ or } x>3", r"x<1 \text{ and } x>3", 0, 0),
    ("1011_2", "1011", 1, 0),
    ("1011_2", "1011_3", 1, 0),
    ("f'(x)", "f(x)", 0, 0),
    ("y'=2y", "y=2y", 1, 0),
    ("x^2+1=0", "x^2+2=0", 1, 0),
    ("e^x=-1", "e^x=-2", 0, 0),
    ("3:30", "1:10", 0, 0),
    ("1:2:3", "1:6", 1, 0),
    ("3:4:5", "3:20", 1, 0),
    ("x=1,y=2", "y=2,x=1", 0, 1),
    ("x=1,y=2", "x=2,y=1", 0, 0),
    (r"CD=2\sqrt{3}", r"CD=\sqrt{12}", 0, 1),
    (r"12\text{ USD}", r"12.00\text{ USD}", 1, 1),
    ("AB=5", "AB = 5.0", 1, 1),
    ("2x+1=0", "1+2x=0", 1, 1),
    ("12", r"\text{12 apples}", 0, 1),
    (r"\frac12", r"\sin 30^\circ", 0, 0),
    (r"\text{ellipse}", "ellipse", 0, 1),
    (r"1.6\times 10^{-19}", r"1.60 \times 10^{-19}", 1, 1),
    (r"\frac{2}{3}\pi", r"\frac{2\pi}{3}", 0, 1),
    (r"x\in(1,2)", "(1,2)", 0, 1),
    ("5 apples", "5", 1, 1),
    (r"12\text{ cm}^2", r"12\text{ cm}^3", 1, 0),
    (r"12\text{ cm}^2", "12", 1, 1),
    ("5", "2(3)", 0, 0),
    ("11", "(4)(7)", 0, 0),
    ("7/2", r"3(\frac{1}{2})", 0, 0),
    ("6", "2(3)", 0, 1),
    ("6", "(2)(3)", 0, 1),
    ("3/2", r"3(\frac12)", 0, 1),
    ("30", "2(3)(5)", 0, 1),
    ("7/2", r"2\frac{3}{2}", 0, 0),
    ("3", r"2\frac{3}{2}", 0, 1),
    ("5.5", "2(3.5)", 0, 0),
    (r"\frac{5}{2}", r"2\frac12", 0, 1),
    ("3+4", r"3+4\mathrm{i}", 0, 0),
    ("2", r"2\mathrm{e}^2", 1, 0),
    ("2", r"2\mathrm{x}", 1, 0),
    ("5", "5 xy", 1, 0),
    ("2", "2 ln x", 1, 0),
    (r"\frac{1}{2} bh", r"\frac{1}{2}", 1, 0),
    ("2xy", "2 xy", 1, 1),
    ("5", r"5\text{ at least}", 1, 0),
    ("5", r"5\text{ squared}", 1, 0),
    ("5", r"5\text{k}", 1, 0),
    ("5", r"5\text{ N}", 1, 0),
    ("5", r"5\text{ factorial}", 1, 0),
    ("1011", r"1011\text{ base two}", 1, 0),
    ("5", r"5\text{ incorrect}", 1, 0),
    ("0", r"\frac{dy}{dx}", 0, 0),
    ("1", r"1+\frac{dy}{dx}", 1, 0),
    (r"\ln 6", r"\ln 2 \cdot 3", 0, 0),
    (r"\sin(x^2)", r"\sin x \cdot x", 0, 0),
    ("0.45", "1.5.3", 0, 0),
    ("0.5x", "x.5", 0, 0),
    ("1,2,3,...", "1,2,3", 1, 0),
    ("0.333", "0.333...", 1, 0),
    ("0.5", r"0.5\%", 1, 0),
    ("1", r"1\%", 1, 0),
    (r"x\%", "x", 0, 0),
    (r"\sin 30^\circ", r"\sin 30", 1, 0),
    ("30", r"30\text{ radians}", 1, 0),
    ("720", "3!!", 0, 0),
    (r"\frac{1}{16}", r"\frac116", 0, 0),
    ("12", r"1\text{}2", 0, 0),
    ("2^10", "2^{1}0", 0, 0),
    ("CO", "Co", 0, 0),
    ("AB", "ab", 0, 0),
    (r"10,\!080", "10080", 0, 1),
    (r"\$32,\!348", "32348", 0, 1),
    (r"11,\! 111,\! 111,\! 100", "11111111100", 0, 0),
    ("1234", r"1\,234", 0, 1),
    (r"36\pi", r"36\pi\text{ cm}^2", 1, 1),
    (r"8\pi \text{ cm}", r"8\pi", 1, 1),
    ("5", r"5\text{ in}", 1, 1),
    (r"1\text{ hour}", r"1\text{ hours}", 1, 1),
    (r"\$12", r"12\text{ dollars}", 0, 1),
    ("1,-2", "x=1,x=-2", 0, 1),
    ("1,-2", r"x=1 \text{ or } x=-2", 0, 1),
    (r"\pm1,\pm2", "1,-1,2,-2", 0, 1),
    (r"3,\pm 2", "3,2,-2", 0, 1),
    ("5", "AB=5", 1, 1),
    ("5", "a_1=5", 1, 1),
    ("5", "f(2)=5", 1, 1),
    (r"\frac12", r"P(A)=\frac12", 0, 1),
    ("-1", "i^2", 0, 1),
    ("2i", "(1+i)^2", 0, 1),
    ("2i", r"\sqrt{-4}", 0, 1),
    ("90\xb0", "90", 1, 1),
    ("2\u03c0", r"2\pi", 1, 1),
    ("\u22125", "-5", 0, 1),
    (r"5\text{ cm}^2", r"5\text{ cm}^3", 1, 0),
    (r"\cos(2x)", r"\cos 2x", 0, 1),
    (r"\ln\frac{1}{2}", r"-\ln 2", 0, 1),
    (r"1+\ln 2", r"\ln 2+1", 0, 1),
]


@pytest.fixture(scope="module")
def sandboxes():
    limits = Limits(cpu_s=2.0)
    with (
        Sandbox(limits, workers=1, packages=grader.packages("official")) as first,
        Sandbox(limits, workers=1, packages=grader.packages("fixed")) as second,
    ):
        yield first, second


@pytest.fixture
def sandbox(sandboxes):
    return sandboxes[1]


GRADES = (grader.official, grader.fixed)


def asked(answer):
    return Question("1", "?", data={"answer": answer})


@pytest.mark.parametrize("answer, given, official, fixed", CASES)
def test_boxed_answers(sandboxes, answer, given, official, fixed):
    response = f"So it is \\boxed{{{given}}}."

    scores = [
        grade(sandbox, asked(answer), response, False).score
        for sandbox, grade in zip(sandboxes, GRADES, strict=True)
    ]

    assert scores == [official, fixed]


@pytest.mark.parametrize(
    "response, right",
    [
        ("\\boxed{7} <answer>6</answer>", True),
        ("<answer>7</answer> \\boxed{6}", False),
        ("<answer>7</answer> stands in my <answer> tag", True),
        ("\\boxed{7} and \\boxed{", False),
    ],
)
def test_box_goes_before_a_tag(sandboxes, response, right):
    assert grader.fixed(sandboxes[1], asked("7"), response, False).score == right


def test_space_in_a_box_is_none_by_the_official_rule(sandboxes):
    scores = [
        grade(sandbox, asked("7"), "\\boxed {7}", False).score
        for sandbox, grade in zip(sandboxes, GRADES, strict=True)
    ]

    assert scores == [0, 1]


@pytest.mark.parametrize("size, right", [(1000, True), (1001, False)])
def test_answer_longer_than_any_is_not_read(sandbox, size, right):
    response = "\\boxed{" + "7".ljust(size) + "}"

    assert grader.fixed(sandbox, asked("7"), response, False).score == right


def test_official_feedback_on_a_cut_response_is_on_its_length(sandboxes):
    verdict = grader.official(sandboxes[0], asked("7"), "\\boxed{6} and", True)

    assert verdict.outcome == "Truncated" and "maximum length" in verdict.feedback


@pytest.mark.parametrize(
    "answer, given",
    [
        ("1,2", "1,2,3"),
        ("1,2", "1,2,2"),
        ("x=1,x=2", "x=1,x=2,x=3"),
        (r"\pm 1", "1,-1,0"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        (r"\{1,2\}", "1,2,3"),
        ("(1,2)", "(1,2,3)"),
        (r"[0,1]\cup[2,3]", r"[0,1]\cup[2,3]\cup[4,5]"),
        (
            r"\begin{pmatrix}1&2\end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        ),
        (
            r"\begin{pmatrix}1\\2\end{pmatrix}",
            r"\begin{pmatrix}1&3\\2&4\end{pmatrix}",
        ),
    ],
)
def test_answer_with_a_member_too_many_or_too_few_is_wrong(sandbox, answer, given):
    for one, other in ((answer, given), (given, answer)):
        response = f"\\boxed{{{other}}}"
        assert grader.fixed(sandbox, asked(one), response, False).score == 0


def test_official_rule_looks_for_a_box_that_begins_near_the_end(sandboxes):
    near, far = "\\boxed{7}" + "." * 90, "\\boxed{7}" + "." * 93

    grade = lambda r: grader.official(sandboxes[0], asked("7"), r, False)

    assert grade(near).score == 1
    assert grade(far).score == 0 and "wrong format" in grade(far).feedback
    assert grader.fixed(sandboxes[1], asked("7"), far, False).score == 1


@pytest.mark.parametrize(
    "response, truncated, outcome, feedback",
    [
        ("\\boxed{7}", True, "Accepted", ""),
        ("\\boxed{8}", False, "Wrong Answer", "8 is not the right answer"),
        ("It is 7", False, "Incorrect Format", "\\boxed{your_answer}"),
        ("It is", True, "Truncated", "cut off"),
        ("<answer>7", False, "Accepted", ""),
        # It may have been 75.
        ("<answer>7", True, "Truncated", "cut off"),
        ("\\boxed{<|im_end|>}", False, "Wrong Answer", "< |im_end| >"),
    ],
)
def test_feedback_says_what_is_wrong_and_never_the_answer(
    sandbox, response, truncated, outcome, feedback
):
    verdict = grader.fixed(sandbox, asked("7"), response, truncated)

    assert verdict.outcome == outcome
    assert feedback in verdict.feedback and bool(feedback) == bool(verdict.feedback)
    assert "7" not in verdict.feedback


@pytest.mark.parametrize(
    "given", ["9^{9^{9^{9}}}", "(((" * 300 + "1" + ")))" * 300, "x" * 5000, "7!" * 300]
)
def test_answers_that_take_for_ever_are_wrong_within_the_time_limit(sandbox, given):
    verdict = grader.fixed(sandbox, asked("7"), f"\\boxed{{{given}}}", False)

    assert verdict.score == 0
    # The worker lives on.
    assert grader.fixed(sandbox, asked("8"), "\\boxed{16/2}", False).score == 1


def test_environment_grades_rows_of_its_files(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [
        {"idx": 1, "prompt": "2+2?", "answer": 4},
        {"idx": 2, "prompt": "1/2?", "answer": "\\frac{1}{2}"},
        {"idx": 3, "prompt": "Small?", "answer": 0.00001},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))

    make_sandbox = functools.partial(Sandbox, Limits(cpu_s=2.0))
    environment = grader.environment({"train": file}, make_sandbox=make_sandbox)

    four, half, small = environment.questions("train")
    assert environment.start(four).act("\\boxed{4.0}", False).score == 1
    assert environment.start(half).act("\\boxed{0.5}", False).score == 1
    assert environment.start(half).act("\\boxed{2}", False).score == 0
    assert environment.start(small).act("\\boxed{10^{-5}}", False).score == 1
    environment.close()


@pytest.mark.parametrize(
    "asks, warned",
    [
        ({"prompt": "2+2? Answer in \\boxed{}."}, False),
        ({"prompt": "2+2?", "system": "Use <answer> tags."}, False),
        ({"prompt": "2+2? The last line is: Answer: $Answer"}, True),
        ({"prompt": '2+2? Output the answer after "####".'}, True),
    ],
)
def test_prompts_that_ask_for_no_mark_are_told(tmp_path, asks, warned, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"answer": 4} | asks))
    sandbox = types.SimpleNamespace(tier="C", close=None)

    grader.environment(
        {"train": file, "heldout": ""}, make_sandbox=lambda packages: sandbox
    )

    told = [
        message for message in caplog.messages if "\\boxed{} or <answer>" in message
    ]
    assert len(told) == warned and all(m.startswith("env.train: no qu") for m in told)


@pytest.mark.parametrize("answer", [None, "", " ", True, [1]])
def test_row_with_a_wrong_answer_is_rejected_by_name(tmp_path, answer):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"idx": 1, "prompt": "?", "answer": answer}))

    with pytest.raises(ValueError, match="rows.jsonl, row 1, field answer: expected"):
        grader.environment({"train": file})
