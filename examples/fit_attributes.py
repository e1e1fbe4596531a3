"""Find attributes in your own images, and edit with them.

From images in subfolders that are classes (smiling/, serious/, ...):

    diffae-hub encode photos/ --split train --columns label --output codes
    python examples/fit_attributes.py codes --labels label --output mine
    diffae-hub edit photo.jpg --model mine --attribute smiling --strengths -0.3 0 0.3 --output edits

From two folders and no training (the difference of their mean codes): encode each, then

    python examples/fit_attributes.py codes-smiling --without codes-serious --name smile --method means --output mine

From the codes alone, the directions in which they vary most:

    python examples/fit_attributes.py codes --principal 10 --output mine

It prints each attribute's accuracy and AUROC (or R2, or share of the variance) on codes that the fit did not see. In
Python: `AttributeClassifier.fit(codes, labels, names)`, `pipe.attribute_classifier = classifier`, `pipe.edit(...)`.
"""

import sys

from diffae_hub.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["fit-attributes", *sys.argv[1:]]))
