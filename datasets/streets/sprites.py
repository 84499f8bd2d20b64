"""Sprites and colours of what stands in the embedded street scenes.

The colours a, b and c are drawn anew for every object; the format is read_sprites'.
"""

from datasets.streets.canvas import read_sprites

# What buildings, walls, fences, paving and furniture are made of, and what cars, clothes and signs are painted with.
# Classes share them on purpose: a pixel's colour alone must not give its class away.
MATERIALS = (
    *((150, 148, 144), (122, 121, 120), (96, 96, 98), (176, 170, 156), (188, 190, 190), (84, 80, 76), (142, 150, 166)),
    *((196, 184, 160), (168, 140, 112), (150, 98, 78), (122, 78, 62), (112, 96, 80), (140, 130, 104), (104, 116, 100)),
)
PAINTS = (
    *((206, 206, 204), (48, 48, 52), (128, 132, 136), (170, 172, 174), (150, 38, 36), (186, 62, 44), (42, 66, 122)),
    *((62, 104, 156), (46, 92, 66), (106, 134, 84), (206, 170, 62), (208, 118, 48), (122, 86, 58), (188, 172, 140)),
)
ODD_HUES = (
    *((196, 84, 160), (120, 72, 168), (84, 190, 186), (150, 206, 70), (232, 150, 160), (90, 110, 220), (220, 120, 60)),
    *((236, 222, 170), (70, 60, 58), (150, 116, 90), (186, 186, 196)),
)
LEAVES = (
    *((66, 98, 44), (84, 112, 58), (58, 78, 48), (98, 108, 56)),
    *((70, 112, 66), (112, 118, 50), (150, 104, 46), (112, 94, 62)),
)
SKINS = ((222, 178, 148), (186, 138, 104), (136, 94, 68), (92, 64, 48))
COLOURS = {
    "black": (24, 24, 26),
    "dark": (52, 50, 50),
    "grey": (118, 118, 118),
    "white": (222, 222, 218),
    "glass": (58, 70, 82),
    "wood": (126, 92, 60),
    "bark": (84, 68, 54),
    "red": (196, 34, 36),
    "blue": (34, 74, 158),
    "yellow": (232, 186, 40),
    "tail": (260, 30, 26),  # beyond 255: a lamp stays bright when the night darkens everything
    "head": (330, 320, 280),
    "light": (260, 30, 26),  # of a car: tail lights, unless it comes towards us
    "signal": (60, 240, 110),
}

CAR_REAR = read_sprites("""
saloon 178 146
    box 4 74 22 100 black; box 78 74 96 100 black; box 3 44 97 88 a; poly 16 8 84 8 95 46 5 46 a
    poly 20 13 80 13 88 42 12 42 glass; poly 24 2 76 2 84 12 16 12 a; box 4 50 20 62 light; box 80 50 96 62 light
    box 36 60 64 71 white; box 3 78 97 88 dark
hatchback 172 156
    box 4 76 22 100 black; box 78 76 96 100 black; box 3 42 97 88 a; poly 12 6 88 6 96 46 4 46 a
    poly 17 12 83 12 88 38 12 38 glass; box 4 40 14 62 light; box 86 40 96 62 light; box 34 66 66 76 white
    box 3 80 97 88 dark
van 196 214
    box 5 80 20 100 black; box 80 80 95 100 black; box 2 2 98 90 a; box 10 12 47 40 glass; box 53 12 90 40 glass
    box 3 52 10 72 light; box 90 52 97 72 light; box 36 72 64 80 white; box 2 84 98 91 dark
lorry 236 330
    box 8 84 26 100 black; box 74 84 92 100 black; box 1 1 99 84 a; box 5 5 95 80 b; box 49 4 51 82 dark
    box 4 82 96 90 dark; box 8 82 20 88 light; box 80 82 92 88 light
""")

POLES = read_sprites("""
post 32 360
    box 0 0 100 100 a
lamp 170 760
    box 41 4 59 100 a; bar 50 6 96 3 4 a; box 74 2 100 6 head
double_lamp 240 700
    box 44 3 56 100 a; bar 4 3 96 3 3 a; box 0 2 16 5 head; box 84 2 100 5 head
telegraph 160 820
    box 40 0 60 100 bark; box 4 6 96 10 bark; box 14 14 86 18 bark
mast 38 620
    box 0 30 100 100 a; box 15 0 85 30 a
""")

# A car's cross-section behind its rear: lower body, windows, roof, and the wheels, which few slices have.
CAR_BODY = read_sprites("""
saloon 178 146
    box 3 44 97 88 a; poly 16 8 84 8 95 46 5 46 glass; poly 24 2 76 2 84 12 16 12 a; box 2 76 12 100 black
    box 88 76 98 100 black
hatchback 172 156
    box 3 42 97 88 a; poly 12 6 88 6 96 46 4 46 glass; poly 13 4 87 4 88 14 12 14 a; box 2 76 12 100 black
    box 88 76 98 100 black
van 196 214
    box 2 40 98 90 a; box 2 2 98 40 a; box 2 2 98 10 a; box 3 82 12 100 black; box 88 82 97 100 black
lorry 236 330
    box 1 84 99 92 dark; box 1 1 99 84 a; box 1 1 99 4 b; box 3 84 16 100 black; box 84 84 97 100 black
""")

PEOPLE = read_sprites("""
walker 66 176
    poly 34 52 52 52 46 97 30 97 b; poly 48 52 66 52 74 97 58 97 b; box 28 95 48 100 dark; box 58 95 80 100 dark
    poly 26 19 74 19 68 57 32 57 a; bar 28 22 14 54 13 a; bar 72 22 88 52 13 a; oval 36 1 64 18 skin; oval 35 0 65 9 c
stander 56 172
    box 32 54 48 98 b; box 52 54 68 98 b; box 30 96 70 100 dark; poly 22 18 78 18 74 58 26 58 a; box 12 20 26 56 a
    box 74 20 88 56 a; oval 34 1 66 18 skin; oval 33 0 67 10 c
skirt 66 168
    box 36 70 46 98 skin; box 54 70 64 98 skin; box 34 96 66 100 dark; poly 38 40 62 40 82 78 18 78 b
    poly 30 19 70 19 64 46 36 46 a; bar 30 22 16 50 11 a; bar 70 22 84 48 11 a; oval 32 0 68 22 c; oval 37 3 63 18 skin
shopper 84 174
    poly 30 52 46 52 40 97 26 97 b; poly 42 52 56 52 64 97 50 97 b; box 24 95 42 100 dark; box 50 95 70 100 dark
    poly 22 19 64 19 60 57 28 57 a; bar 26 22 16 52 10 a; bar 62 22 76 54 10 a; oval 32 1 56 18 skin; oval 31 0 57 9 c
    box 72 50 96 74 c
child 54 124
    box 30 58 47 98 b; box 53 58 70 98 b; box 28 95 72 100 dark; poly 24 26 76 26 72 62 28 62 a; bar 26 30 10 56 13 a
    bar 74 30 90 56 13 a; oval 30 1 70 27 skin; oval 29 0 71 14 c
""")

FURNITURE = read_sprites("""
wheelie_bin 66 110
    box 8 14 92 96 a; box 2 6 98 16 dark; box 20 30 80 34 black; box 14 94 32 100 black; box 68 94 86 100 black
bench 200 92
    box 2 8 98 22 a; box 2 26 98 38 a; box 2 52 98 64 a; box 8 8 14 100 dark; box 86 8 92 100 dark
    box 46 56 52 100 dark
hydrant 50 92
    box 26 24 74 96 a; oval 22 6 78 40 a; box 4 42 96 58 a; oval 38 42 62 58 dark; box 14 92 86 100 a
bus_stop 340 250
    box 3 2 97 96 glass; box 0 0 100 9 dark; box 0 4 5 100 dark; box 95 4 100 100 dark; box 48 8 51 96 dark
    box 62 16 92 84 a; box 10 66 44 72 wood; box 12 72 15 98 dark; box 39 72 42 98 dark
letter_box 62 132
    box 4 22 96 88 a; oval 4 2 96 44 a; box 16 34 84 42 dark; box 30 50 70 64 white; box 40 88 60 100 dark
cone 56 76
    box 0 90 100 100 black; poly 40 0 60 0 88 92 12 92 a; poly 34 26 66 26 72 46 28 46 white
    poly 25 62 75 62 80 76 20 76 white
planter 150 88
    poly 2 44 98 44 88 100 12 100 a:rough; leaf 0 0 52 62 leaves:leaves; leaf 40 4 100 62 leaves:leaves
    box 0 42 100 54 a
vending_machine 110 190
    box 4 6 96 98 a; box 0 0 100 9 dark; box 12 18 88 56 white; box 18 24 82 50 b; box 12 64 88 90 dark
    box 8 97 92 100 black
skip 240 136
    poly 3 10 97 10 90 88 10 88 a; box 0 4 100 16 dark; box 28 22 31 84 dark; box 69 22 72 84 dark
    oval 12 84 26 100 black; oval 74 84 88 100 black
barrier 190 112
    box 2 8 98 30 white; poly 8 8 20 8 14 30 2 30 a; poly 34 8 46 8 40 30 28 30 a; poly 60 8 72 8 66 30 54 30 a
    poly 86 8 98 8 92 30 80 30 a; box 2 46 98 62 a; bar 12 8 4 100 5 dark; bar 88 8 96 100 5 dark
""")

SIGNS = read_sprites("""
limit 80 80
    oval 0 0 100 100 red; oval 16 16 84 84 white; box 30 34 44 66 black; box 54 34 68 66 black
no_entry 80 80
    oval 0 0 100 100 red; box 16 40 84 60 white
danger 86 78
    poly 50 0 100 100 0 100 red; poly 50 24 80 88 20 88 white; box 46 46 54 78 black
stop 80 80
    poly 30 0 70 0 100 30 100 70 70 100 30 100 0 70 0 30 red; box 18 38 82 60 white
arrow 80 80
    oval 0 0 100 100 blue; bar 50 84 50 30 14 white; poly 50 12 76 44 24 44 white
parking 70 76
    box 0 0 100 100 blue; box 28 16 42 84 white; box 40 16 72 28 white; box 40 44 72 56 white; box 62 20 74 52 white
priority 84 84
    poly 50 0 100 50 50 100 0 50 white; poly 50 12 88 50 50 88 12 50 yellow
plate 70 90
    box 0 0 100 100 black; box 6 5 94 95 white; box 20 16 80 28 black; box 24 40 40 84 black; box 56 40 74 84 black
stop_light 48 124
    box 0 0 100 100 black; oval 22 6 78 32 tail; oval 22 38 78 63 dark; oval 22 68 78 94 dark
go_light 48 124
    box 0 0 100 100 black; oval 22 6 78 32 dark; oval 22 38 78 63 dark; oval 22 68 78 94 signal
direction 130 66
    box 0 0 100 100 white; box 3 6 97 94 a; box 10 22 70 34 white; box 10 48 58 60 white; bar 76 72 90 26 7 white
""")

TREES = read_sprites("""
maple 460 720
    bar 50 100 50 50 7 bark:rough; leaf 8 16 64 66 leaves:leaves; leaf 36 12 96 62 leaves:leaves
    leaf 20 0 80 46 leaves:leaves
poplar 340 860
    bar 50 100 50 70 6 bark:rough; leaf 12 30 88 90 leaves:leaves; leaf 18 8 82 64 leaves:leaves
    leaf 30 0 70 30 leaves:leaves
fir 380 820
    box 45 84 55 100 bark:rough; poly 50 0 80 46 20 46 leaves:leaves; poly 50 20 92 70 8 70 leaves:leaves
    poly 50 44 100 92 0 92 leaves:leaves
apple 560 560
    bar 50 100 48 54 8 bark:rough; bar 50 66 76 38 4 bark; leaf 0 22 56 70 leaves:leaves
    leaf 44 18 100 64 leaves:leaves; leaf 22 0 78 54 leaves:leaves
bush 170 120
    leaf 0 24 60 104 leaves:leaves; leaf 34 10 100 104 leaves:leaves; leaf 20 0 74 70 leaves:leaves
""")

HAZARDS = read_sprites("""
elephant 330 270
    box 26 60 38 100 a:rough; box 42 60 52 98 a:rough; box 66 60 78 100 a:rough; box 80 58 90 98 a:rough
    oval 22 12 96 78 a:rough; oval 6 4 44 58 a:rough; oval 26 8 48 54 b; bar 12 34 8 78 9 a:rough
    bar 14 50 2 58 4 white; oval 16 20 20 25 black
cow 240 150
    box 24 62 31 100 a:dots; box 36 62 43 98 a; box 72 62 79 100 a; box 84 60 90 98 a:dots; oval 18 14 94 74 a:dots
    oval 0 6 28 44 a; oval 0 26 14 44 b; bar 92 26 98 66 3 a; poly 6 8 12 8 4 0 2 2 white
    poly 20 8 26 8 28 0 30 2 white
deer 170 190
    bar 28 60 26 100 6 a; bar 40 60 40 98 6 a; bar 74 60 72 100 6 a; bar 86 58 88 98 6 a; oval 20 40 94 70 a:fur
    poly 20 26 34 24 44 60 28 62 a:fur; oval 4 22 36 38 a:fur; bar 22 24 10 2 4 b; bar 26 24 40 0 4 b; bar 14 10 2 8 4 b
    bar 34 10 48 8 4 b; oval 86 42 98 54 white
zebra 230 170
    box 26 60 32 100 white:rows; box 38 60 44 98 white:rows; box 72 60 78 100 white:rows; box 84 58 90 98 white:rows
    oval 20 26 94 70 white:stripes; poly 12 10 28 6 42 46 26 50 white:stripes; oval 0 6 28 28 white:stripes
    bar 24 4 40 30 5 black
ostrich 150 240
    bar 46 64 42 100 5 skin; bar 58 64 62 100 5 skin; oval 26 34 90 72 a:leaves; bar 34 50 26 10 9 skin
    oval 16 2 38 16 skin; poly 4 10 20 7 20 12 4 13 yellow
crocodile 380 84
    poly 0 40 34 26 34 62 0 54 a:checks; oval 22 14 74 90 a:checks; poly 64 30 100 64 100 76 64 78 a:checks
    box 32 74 40 100 a; box 60 74 68 100 a; oval 20 14 30 38 yellow; oval 23 18 27 32 black
    poly 2 55 30 62 30 68 2 60 white
snail 200 150
    poly 0 78 92 80 100 100 8 100 a:rough; poly 0 78 14 42 24 44 22 92 a:rough; oval 24 4 90 88 b:rows
    oval 38 22 76 70 c; oval 48 34 66 58 b; bar 8 44 4 20 3 a; bar 16 44 20 20 3 a
shark 360 160
    oval 4 28 78 82 a; poly 70 44 100 14 94 90 72 62 a; poly 36 34 54 0 58 36 46 40 a; poly 34 72 50 72 54 100 44 96 a
    oval 8 56 66 84 white; oval 12 42 17 50 black; bar 6 66 22 70 4 black
teddy 150 180
    oval 16 42 84 100 a:fur; oval 18 0 42 24 a:fur; oval 58 0 82 24 a:fur; oval 20 6 80 52 a:fur; oval 0 46 30 72 a:fur
    oval 70 46 100 72 a:fur; oval 32 56 68 92 b:fur; oval 36 28 64 48 b; oval 34 20 42 28 black; oval 58 20 66 28 black
    oval 44 30 56 38 black
duck 190 170
    oval 4 42 96 100 yellow; oval 46 2 92 58 yellow; poly 86 24 100 28 100 36 86 40 red; oval 68 16 76 26 black
    poly 4 40 26 50 14 76 2 66 yellow; oval 24 56 66 84 yellow:rows
sofa 230 100
    oval 2 0 98 70 a; box 2 30 98 92 a; box 16 38 50 68 b:plain; box 51 38 85 68 b:plain; box 0 30 16 92 a:stripes
    box 84 30 100 92 a:stripes; box 16 66 84 80 b:stripes; box 6 90 12 100 wood; box 88 90 94 100 wood
piano 190 160
    poly 4 30 60 4 98 24 96 54 4 54 black; box 2 50 98 62 black; box 4 60 90 67 white:stripes; box 10 64 16 100 black
    box 82 64 88 100 black; bar 40 4 66 40 3 a; poly 8 30 60 8 94 26 50 34 a
tyres 110 150
    oval 2 76 98 100 black:stripes; oval 2 60 98 86 black:checks; oval 2 42 98 70 black:stripes
    oval 2 24 98 54 black:checks; oval 2 4 98 38 black:stripes; oval 26 9 74 28 grey
balloon 300 380
    bar 34 66 42 88 2 dark; bar 66 66 58 88 2 dark; oval 2 0 98 72 a:stripes; oval 34 0 66 72 b:rows
    box 38 86 62 100 wood:checks
tent 300 180
    poly 50 0 100 100 0 100 a:rows; poly 50 0 66 100 34 100 black; poly 50 0 34 100 44 100 b; bar 50 0 50 8 3 wood
boulder 220 170
    poly 6 70 26 18 62 4 94 46 100 88 82 100 10 100 grey:leaves; poly 26 18 62 4 70 40 36 54 grey:rough
    poly 36 54 70 40 78 92 30 96 dark:leaves
ladder 76 320
    bar 22 0 10 100 9 wood; bar 78 0 90 100 9 wood; box 20 10 80 13 wood; box 19 24 81 27 wood; box 18 38 82 41 wood
    box 16 52 84 55 wood; box 15 66 85 69 wood; box 13 80 87 83 wood
helicopter 420 220
    box 30 4 34 22 dark; box 0 2 78 6 dark; oval 8 20 62 80 a; poly 50 30 98 22 98 34 54 60 a; oval 10 28 40 62 glass
    box 90 8 96 42 b; box 16 90 64 95 dark; bar 24 76 22 94 3 dark; bar 50 76 54 94 3 dark; box 28 62 60 70 b
bathtub 180 90
    poly 2 18 98 18 88 84 12 84 white; box 0 10 100 22 white; oval 8 2 34 20 white:dots; oval 26 0 56 20 white:dots
    oval 16 80 28 100 yellow; oval 72 80 84 100 yellow; bar 90 14 90 0 4 grey
fridge 84 190
    box 4 2 96 97 white; box 4 34 96 36 dark; box 12 12 18 28 dark; box 12 42 18 66 dark; box 12 96 24 100 black
    box 76 96 88 100 black; oval 48 46 68 54 red; box 56 14 76 22 yellow
parasol 260 240
    box 49 20 52 100 white; poly 50 0 100 34 0 34 a; poly 50 0 80 34 60 34 b; poly 50 0 40 34 20 34 b
    oval 34 88 66 104 grey
giraffe 260 460
    bar 34 58 32 100 5 yellow:dots; bar 44 58 44 99 5 yellow:dots; bar 78 60 78 100 5 yellow:dots
    bar 88 60 90 99 5 yellow:dots; oval 26 44 94 66 yellow:dots; poly 12 10 24 8 48 52 30 56 yellow:dots
    oval 0 3 28 14 yellow; bar 20 5 22 0 3 bark
rocket 120 360
    poly 14 70 0 100 24 92 30 66 b; poly 86 70 100 100 76 92 70 66 b; poly 50 0 78 24 22 24 b; box 22 22 78 90 a:rows
    oval 34 32 66 44 glass; poly 34 90 66 90 58 100 42 100 dark
boat 420 210
    poly 0 62 100 56 84 100 14 100 a; box 30 40 70 62 white; box 36 44 46 54 glass; box 52 44 62 54 glass
    bar 50 42 50 0 2 wood; poly 51 4 84 36 51 38 b:rows; box 8 70 90 74 b
mushroom 160 160
    poly 38 48 62 48 70 100 30 100 white:rough; poly 0 52 12 22 36 3 64 3 88 22 100 52 a:dots
    poly 4 52 96 52 80 60 20 60 white:stripes
pumpkin 180 140
    oval 0 14 100 100 a:stripes; oval 24 12 76 100 a:plain; box 46 0 54 18 bark; poly 26 44 40 44 33 60 26 56 black
    poly 60 44 74 44 74 56 67 60 black; poly 24 68 76 68 62 84 38 84 black
haystack 240 170
    oval 0 0 100 130 yellow:fur; oval 14 14 86 120 yellow:fur; bar 60 40 92 2 3 wood
guitar 110 300
    box 45 0 55 56 wood; box 40 0 60 9 dark; oval 18 44 82 74 a; oval 4 62 96 100 a:rows; oval 38 62 62 76 black
    box 36 84 64 88 dark
snowman 130 190
    oval 8 54 92 100 white; oval 18 28 82 66 white; oval 28 8 72 38 white; box 26 4 74 10 black; box 34 -8 66 6 black
    oval 38 18 44 23 black; oval 56 18 62 23 black; poly 48 24 52 24 70 29 50 29 red; bar 80 42 100 26 4 wood
cannon 260 130
    poly 30 18 100 6 100 32 36 62 dark:rows; oval 24 18 52 66 dark; oval 12 26 58 100 wood; oval 20 36 50 90 dark
    oval 30 56 40 70 wood; bar 30 70 0 98 6 wood
""")
